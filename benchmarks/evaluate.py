"""How long an exam of 200 pictures takes in the pocket world, on this machine's processor: `python benchmarks/evaluate.py [--toy]`

Drawing and judging, with models already loaded; an untrained ControlNet takes as long as a trained one. `--toy`: 12 pictures of two steps, to see that it runs.
"""
import os, platform, sys, tempfile, time
os.environ['CUDA_VISIBLE_DEVICES'] = ''
from importlib.metadata import version
from pathlib import Path
import torch
from facecontrol.evaluate import Exam, drawn_rows, measure
from facecontrol.loss import load_base, new_controlnet

def seconds(work): # what it gives back, and how long it took
    begun = time.perf_counter()
    return work(), time.perf_counter() - begun

if __name__ == '__main__':
    toy = '--toy' in sys.argv
    masks, probes, steps = (4, 1, 2) if toy else (136, 8, 20)
    with tempfile.TemporaryDirectory() as folder:
        new_controlnet(load_base().unet).save_pretrained(f'{folder}/controlnet')
        rows = drawn_rows(masks)
        exam, base = seconds(lambda: Exam('pocket', rows, probes, Path(folder)/'pictures', steps=steps))
        _, drawn = seconds(lambda: measure(exam, f'{folder}/controlnet', step=1))
        _, judged = seconds(lambda: measure(exam, f'{folder}/controlnet', step=1))
    pictures = len(exam.rows) + len(exam.probes)
    print(f'{pictures} pictures of {steps} steps; {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads of {os.cpu_count()} cores; '
          f"Python {platform.python_version()}, torch {torch.__version__}, diffusers {version('diffusers')}, transformers {version('transformers')}{'; a toy: the figures mean nothing' * toy}\n")
    print('| what | seconds | wanted |\n|---|---|---|')
    print(f'| an exam begins: models loaded, the same pictures by the base alone | {base:.0f} | - |')
    print(f'| a checkpoint: its pictures drawn and judged | {drawn:.0f} | at most 180 |')
    print(f'| the same checkpoint again: only judged, pictures from the cache | {judged:.0f} | - |')
