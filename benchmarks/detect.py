"How good and how fast the pocket detector is: held-out drawn faces, pictures in, points out, all cores"
import os, time
import numpy as np
import torch
from PIL import Image
from facecontrol.detect import load_detector
from facecontrol.faces import draw_faces
from facecontrol.landmarks import failure_rate, nme
from facecontrol.store import origin

if __name__ == '__main__': # `draw_faces` spawns
    faces = draw_faces(range(20_000, 21_000), concept='any', style='any')
    images = [Image.fromarray(image) for image in faces['image']]
    detect = load_detector('pocket', device='cpu')
    detect(images[:128])
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        found = detect(images)
        seconds.append(time.perf_counter() - start)
    error = nme(np.stack([np.full((68, 2), np.nan) if points is None else points for points in found]), faces['visible'])
    print(f'mean NME (interocular) {error[np.isfinite(error)].mean():.2%}, over 8 %: {failure_rate(error, 0.08):.2%}, '
          f'{len(images) / np.median(seconds):.0f} faces/s on {torch.get_num_threads()} threads; '
          f'{os.cpu_count()} cores, {origin()}')
