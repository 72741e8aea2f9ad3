"Does a long build need more memory than a short one? Tiny rows through the real pipeline, memory and open files as it goes"
import argparse, gc, json, os, platform, sys, tempfile, time
from pathlib import Path
import datasets
import psutil
import pyarrow
from facecontrol.dataset import build
from facecontrol.faces import draw_face, sample_face
from facecontrol.facesynthetics import encode_png, format_landmarks, Frame


class Repeated:
    "A source of as many frames as one likes, made of twenty faces"
    def __init__(self, rows, size=32):
        drawings = [draw_face(sample_face(seed), size) for seed in range(20)]
        self.faces = [(encode_png(d.image), encode_png(d.image_seg), format_landmarks(d.landmarks)) for d in drawings]
        self.ids = [f'{n:08d}' for n in range(rows)]
    def __len__(self): return len(self.ids)
    def __getitem__(self, n): return Frame(self.ids[n], *self.faces[n % 20])

class Watched:
    "A captioner that looks at the process from time to time"
    settings = 'watched'
    def __init__(self, every): self.every, self.rows, self.seen, self.process = every, 0, [], psutil.Process()
    def __call__(self, images):
        if self.rows % self.every < len(images):
            gc.collect()
            self.seen.append((self.rows, self.process.memory_info().rss / 2**20, self.process.num_fds()))
        self.rows += len(images)
        return [f'face {self.rows}'] * len(images)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--rows', type=int, default=100_000)
    rows = parser.parse_args().rows
    watched, begun = Watched(max(64, rows // 50)), time.time()
    with tempfile.TemporaryDirectory() as folder:
        built = build(Repeated(rows), 'dataset', watched, Path(folder)/'out', progress=sys.stderr.isatty())
    seconds = time.time() - begun
    for row, memory, files in watched.seen[::max(1, len(watched.seen) // 10)]: print(f'{row:8,} rows  {memory:7.1f} MiB  {files} open files')
    early, late = watched.seen[len(watched.seen) // 5], watched.seen[-1]
    print(json.dumps(dict(rows=built.train + built.test, rows_per_s=round(rows / seconds), growth=round(late[1] / early[1] - 1, 4), from_row=early[0], to_row=late[0],
        files_before=early[2], files_after=late[2], machine=f'{platform.machine()}, {os.cpu_count()} cores', python=platform.python_version(), datasets=datasets.__version__, pyarrow=pyarrow.__version__)))
