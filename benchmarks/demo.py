"The demo: slider to new mask, a picture at 20 steps, memory over many pictures. `python benchmarks/demo.py [pictures]`"
import resource, sys, time
from pathlib import Path
import numpy as np
from facecontrol.demo import edit, frame
from facecontrol.faces import draw_face, sample_face
from facecontrol.generate import generate, load_pipeline, picture_size
from facecontrol.landmarks import draw_mask
from facecontrol.loss import load_base, new_controlnet

def milliseconds(work, times): # the median over calls
    taken = []
    for n in range(times):
        begun = time.perf_counter()
        work(n)
        taken.append(1000 * (time.perf_counter() - begun))
    return np.median(taken)

if __name__ == '__main__':
    pictures = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    trained = Path('runs/quickstart/controlnet')
    pipeline = load_pipeline('pocket', trained if trained.is_dir() else new_controlnet(load_base('pocket').unet), 'cpu')
    size = picture_size(pipeline)
    face = frame(draw_face(sample_face(200), size).visible, size)
    mask = draw_mask(edit(face, yaw=1, smile=.1), size)     # the first edit learns the directions of an expression
    print(f'slider to new mask: {milliseconds(lambda n: draw_mask(edit(face, yaw=n % 30, smile=.5), size), 50):.0f} ms (at most 100)')
    print(f'one picture of 20 steps: {milliseconds(lambda n: generate(pipeline, "a clown", mask, n), 3) / 1000:.1f} s (at most 5)')
    peaks = []
    for seed in range(pictures):
        generate(pipeline, 'a clown', mask, seed, steps=2)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(f'peak memory after {pictures // 10}, {pictures // 2} and {pictures} pictures: '
          + ', '.join(f'{peaks[n - 1]:.0f}' for n in (pictures // 10, pictures // 2, pictures)) + ' MiB')
