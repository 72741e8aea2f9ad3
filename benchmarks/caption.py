"Captions a second: in batches against one picture at a time, same model, same pictures, in turns, medians"
import argparse, os, platform, time
import numpy as np
import torch
import transformers
from PIL import Image
from facecontrol.caption import load_captioner
from facecontrol.faces import draw_faces

if __name__ == '__main__': # `draw_faces` spawns
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--captioner', default='pocket')
    parser.add_argument('--images', type=int, default=128)
    parser.add_argument('--rounds', type=int, default=3)
    given = parser.parse_args()
    images = [Image.fromarray(image) for image in draw_faces(range(30_000, 30_000 + given.images), 128, workers=1)['image']]
    caption, seconds, sentences = load_captioner(given.captioner), {1: [], 8: [], 32: [], 64: []}, {}
    for turn in range(given.rounds + 1):
        for batch_size, taken in seconds.items():
            caption.batch_size = batch_size
            begun = time.perf_counter()
            sentences[batch_size] = caption(images if turn else images[:batch_size]) # the first turn warms up
            if turn: taken.append(time.perf_counter() - begun)
    rates = {batch_size: len(images) / np.median(taken) for batch_size, taken in seconds.items()}
    for batch_size, rate in rates.items(): print(f'batches of {batch_size:2}: {rate:7.2f} captions/s, {rate / rates[1]:4.1f} × one at a time')
    same = all(written == sentences[1] for written in sentences.values())
    print(f'{"the same sentences" if same else "SENTENCES DIFFER"}; {caption.settings}; medians of {given.rounds} rounds; {torch.get_num_threads()} threads, {platform.machine()}, '
          f'{os.cpu_count()} cores, torch {torch.__version__}, transformers {transformers.__version__}' + (f', {torch.cuda.get_device_name()}' if torch.cuda.is_available() else ''))
