"""The notebook's panel: slider to new mask, button to picture, memory over many pictures: `python benchmarks/demo.py [pictures]` (200 if not given)

On this machine's processor, kernel side only: what the browser adds, a browser has to measure. The weights of `make run` if they are there; untrained ones take as long.
"""
import os, platform, resource, sys, time
from importlib.metadata import version
from pathlib import Path
import numpy as np
import torch
from facecontrol.demo import Panel, frame
from facecontrol.detect import load_detector
from facecontrol.faces import COURSE_SEEDS, draw_face, sample_face
from facecontrol.generate import load_pipeline, picture_size
from facecontrol.loss import load_base, new_controlnet

def median_seconds(work, times): # over calls, the first not counted: it learns directions and warms up
    work(0)
    taken = []
    for n in range(1, times + 1):
        begun = time.perf_counter()
        work(n)
        taken.append(time.perf_counter() - begun)
    return np.median(taken)

def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == 'darwin' else 2**10)   # MiB so far

if __name__ == '__main__':
    pictures, trained = int(sys.argv[1]) if len(sys.argv) > 1 else 200, Path('runs/quickstart/controlnet')
    pipeline = load_pipeline('pocket', trained if (trained/'config.json').is_file() else new_controlnet(load_base('pocket').unet), 'cpu')
    size = picture_size(pipeline)
    panel = Panel(pipeline, frame(draw_face(sample_face(COURSE_SEEDS[1]), size).visible, size), load_detector('pocket', device='cpu'))
    def slide(n): panel.sliders['smile'].value, panel.sliders['yaw'].value = .5, (n % 28) - 14.25   # steps of 1.5 degrees; each is another
    def press(n):
        panel.seed.value = n
        panel.draw()
        assert panel.drawn.seed == n, panel.said.value
    mask, picture = median_seconds(slide, 50), median_seconds(press, 5)
    panel.steps, peaks = 2, []   # memory does not go by the steps of a picture
    for seed in range(pictures):
        press(seed)
        peaks.append(peak())
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads of {os.cpu_count()} cores; Python {platform.python_version()}, "
          f"torch {torch.__version__}, diffusers {version('diffusers')}, ipywidgets {version('ipywidgets')}\n")
    print('| what | measured | wanted |\n|---|---|---|')
    print(f'| a slider moves, the mask is drawn and encoded | {1000 * mask:.0f} ms | at most 100 |')
    print(f'| the button: 20 steps, points found again, laid over, encoded | {picture:.1f} s | at most 5 |')
    at = sorted({max(1, pictures // 10), max(1, pictures // 2), pictures})
    print(f"| peak memory after {', '.join(map(str, at))} pictures | {', '.join(f'{peaks[n - 1]:.0f}' for n in at)} MiB | flat |")
