"""Rows a second: `build` against the published way (one process, one picture at a time, a Matplotlib figure for each mask,
`Dataset.from_generator`), the same detector and captioner, the same frames, in one run; with --kills also how a build survives kill -9"""
import argparse, json, os, platform, random, subprocess, sys, tempfile, time
from pathlib import Path
import datasets
import matplotlib
import torch
from PIL import Image
from draw_mask import figure_mask
from facecontrol.caption import load_captioner
from facecontrol.dataset import COLUMNS, build
from facecontrol.detect import load_detector
from facecontrol.faces import draw_face, sample_face
from facecontrol.facesynthetics import frames, write_frames
from facecontrol.landmarks import landmark_box
from facecontrol.workers import Lazy


def published(found, detector, captioner, out): # what everybody writes
    detect, caption = load_detector(detector), load_captioner(captioner, batch_size=1)
    def rows():
        for frame in found:
            image = frame.image
            points, = detect([image], [landmark_box(frame.landmarks)])
            if points is None: continue
            yield dict(image=image, image_seg=frame.image_seg, landmarks=frame.text, spiga=points.tolist(), spiga_seg=Image.fromarray(figure_mask(points, image.width)),
                       image_caption=caption([image])[0])
    made = datasets.Dataset.from_generator(rows, features=COLUMNS, cache_dir=str(out/'cache'))
    made.to_parquet(out/'train.parquet')
    return len(made)

def ours(found, detector, captioner, out, workers): # `build`, its processes and their models from the start
    return build(found, Lazy(load_detector, detector), Lazy(load_captioner, captioner), out, workers=workers, test_share=0, shard_size=64, progress=False).train

def speed(found, given, folder):
    rates, counts = {}, {}
    ways = {'the published way': lambda: published(found, given.detector, given.captioner, folder/'published')}
    ways |= {f'build, {n} worker{"s" * (n > 1)}': lambda n=n: ours(found, given.detector, given.captioner, folder/f'ours{n}', n) for n in given.workers}
    for name, make in ways.items():
        begun = time.perf_counter()
        counts[name] = make()
        rates[name] = counts[name] / (time.perf_counter() - begun)
        print(f'{name:20} {rates[name]:7.2f} rows/s, {rates[name] / rates["the published way"]:5.2f} ×', flush=True)
    assert len(set(counts.values())) == 1, f'not the same rows: {counts}'
    print(f'{len(found)} faces of {given.size} px, {counts["the published way"]} rows; detector {given.detector}, captioner {given.captioner}; loading models and starting processes counted')

def contents(folder): return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()}

def survive(source, given, folder): # kill -9 at random moments of its life, one for each resume
    build_once = f"from build import Path, frames, ours, sys; ours(frames({str(source)!r}, 200), 'pocket', 'none', Path(sys.argv[1]), {given.workers[-1]})"
    start = lambda out: subprocess.Popen([sys.executable, '-c', build_once, out], cwd=Path(__file__).parent, stderr=subprocess.DEVNULL)
    begun = time.time()
    assert start(folder/'clean').wait() == 0
    life, clean, same, draw = time.time() - begun, contents(folder/'clean'), 0, random.Random(0)
    for n in range(given.kills):
        out = folder/f'killed{n}'
        process = start(out)
        time.sleep(draw.uniform(.2, 1) * life)
        process.kill()
        process.wait()
        before = len(list(out.glob('data/*.parquet')))
        assert start(out).wait() == 0
        same += contents(out) == clean
        print(f'killed with {before} shards written: {"the same bytes" if contents(out) == clean else "DIFFERENT"}', flush=True)
    print(json.dumps(dict(kills=given.kills, identical=same)))


if __name__ == '__main__': # processes are spawned
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--frames', type=int, default=512)
    parser.add_argument('--size', type=int, default=512)
    parser.add_argument('--detector', default='pocket')
    parser.add_argument('--captioner', default='pocket')
    parser.add_argument('--workers', type=int, nargs='+', default=[1, os.cpu_count()])
    parser.add_argument('--kills', type=int, default=0, help='kill and resume builds of 200 rows so often, in place of the race')
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        count = 200 if given.kills else given.frames
        write_frames((draw_face(sample_face(seed), given.size) for seed in range(count)), folder/'faces')
        if given.kills: survive(folder/'faces', given, folder)
        else: speed(frames(folder/'faces'), given, folder)
    print(f'{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads for the published way, 1 a worker for ours, python {platform.python_version()}, torch {torch.__version__}, datasets {datasets.__version__}, matplotlib {matplotlib.__version__}'
          + (f', {torch.cuda.get_device_name()}' if torch.cuda.is_available() else ''))
