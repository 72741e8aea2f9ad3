"How fast SPIGA is through our windows, beside its own loop: same weights (at random), same faces, same run, medians. `spiga.py [faces]`"
import os, platform, sys, tempfile, time
from pathlib import Path
import numpy as np
import torch
from PIL import Image
from facecontrol.detect import load_detector, pick_square, square_around
from facecontrol.faces import draw_faces
from facecontrol.landmarks import landmark_box
from facecontrol.pocket import best_device
sys.path[0] = str(Path(__file__).parents[1]/'tests') # in place of this folder, where this file would hide the package spiga
from upstream_spiga import random_weights, upstream

GFLOP = 41.8 # a face, counted by torch.utils.flop_counter
device = best_device()

def seconds(work, times=3):
    "The median time of a piece of work, after one to warm up"
    work()
    taken = []
    for _ in range(times):
        if device == 'cuda': torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if device == 'cuda': torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return float(np.median(taken))

def matrix_rate(dtype, n):
    "TFLOP/s of a large matrix product; in float32 a card may round as its convolutions do"
    if device == 'cuda': torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
    a = torch.randn(n, n, device=device, dtype=dtype)
    rate = 2 * n**3 / seconds(lambda: a @ a, 5) / 1e12
    if device == 'cuda': torch.backends.cuda.matmul.allow_tf32 = False   # as it was
    return rate

def main(n):
    faces = draw_faces(range(n), size=512)
    images, boxes = [Image.fromarray(image) for image in faces['image']], [landmark_box(points) for points in faces['visible']]
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder)/'spiga.pt'
        random_weights(weights, pictures=np.stack([pick_square(i, square_around(b), 256) for i, b in zip(images[:4], boxes)]))
        theirs = upstream(weights, 'cuda' if device == 'cuda' else 'cpu')
        bgr = [np.asarray(image)[..., ::-1].copy() for image in images]
        def loop(): return [theirs(image, [box])['landmarks'][0] for image, box in zip(bgr, boxes)]
        true, base = np.array(loop()), n / seconds(loop)
        print(f"{n} faces\nSPIGA's own loop        {base:7.2f} faces/s", flush=True)
        for compile in (False, True):   # compiling takes minutes
            for dtype in (torch.float32, torch.bfloat16) if device == 'cpu' else (torch.float32, torch.bfloat16, torch.float16):
                detect = load_detector('spiga', weights, device, dtype=dtype, compile=compile)
                moved = np.abs(np.stack(detect(images, boxes)) - true).max(axis=(1, 2)) * 256 / [square_around(box)[2] for box in boxes]
                rate, peak = n / seconds(lambda: detect(images, boxes)), matrix_rate(dtype, 2048 if device == 'cpu' else 8192)
                print(f'ours {str(dtype)[6:]:9} {"compiled" * compile:8} {rate:7.2f} faces/s, {rate / base:5.1f} times; points moved by at most {moved.max():.4f} px of 256; '
                      f'{GFLOP * rate / 1e3:.3f} of {peak:.3f} TFLOP/s, {GFLOP * rate / 1e3 / peak:.0%}', flush=True)
    print(f'{torch.cuda.get_device_name() if device == "cuda" else device}, {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, python {platform.python_version()}, torch {torch.__version__}')

if __name__ == '__main__': main(int(sys.argv[1]) if sys.argv[1:] else 8 if device == 'cpu' else 512)
