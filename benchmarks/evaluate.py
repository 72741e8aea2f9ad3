"How long an exam of 200 pictures takes in the pocket world, drawing and judging, all cores (`--toy`: four masks, two steps)"
import sys, tempfile, time
from pathlib import Path
import torch
from facecontrol.evaluate import Exam, drawn_rows, measure
from facecontrol.loss import load_base, new_controlnet

if __name__ == '__main__':
    toy = '--toy' in sys.argv
    with tempfile.TemporaryDirectory() as folder:
        new_controlnet(load_base().unet).save_pretrained(f'{folder}/controlnet')   # untrained: takes as long as a trained one
        exam = Exam('pocket', drawn_rows(4 if toy else 136), probes=1 if toy else 8, cache=Path(folder)/'pictures', steps=2 if toy else 20)
        pictures, start = len(exam.rows) + len(exam.probes), time.perf_counter()
        measure(exam, f'{folder}/controlnet', step=1)
        drawn = time.perf_counter() - start
        measure(exam, f'{folder}/controlnet', step=1)
        judged = time.perf_counter() - start - drawn
    print(f'{pictures} pictures drawn and judged in {drawn:.0f} s on {torch.get_num_threads()} threads; judged again from the cache in {judged:.0f} s')
