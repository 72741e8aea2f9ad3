"Captions a second: in batches against one picture at a time, same model, same pictures, same run"
import argparse, os, platform, time
import torch
import transformers
from PIL import Image
from facecontrol.caption import load_captioner
from facecontrol.faces import draw_faces

def rate(caption, images, rounds): # captions a second, best of some rounds
    best = 0
    for _ in range(rounds):
        begun = time.perf_counter()
        written = caption(images)
        best = max(best, len(images) / (time.perf_counter() - begun))
    return best, written

if __name__ == '__main__': # `draw_faces` spawns
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--captioner', default='pocket')
    parser.add_argument('--images', type=int, default=128)
    parser.add_argument('--rounds', type=int, default=3)
    given = parser.parse_args()
    images = [Image.fromarray(image) for image in draw_faces(range(30_000, 30_000 + given.images), 128, workers=1)['image']]
    rates, sentences = {}, {}
    for batch_size in (1, 8, 32, 64):
        caption = load_captioner(given.captioner, batch_size=batch_size)
        caption(images[:batch_size])
        rates[batch_size], sentences[batch_size] = rate(caption, images, given.rounds)
        print(f'batches of {batch_size:2}: {rates[batch_size]:7.2f} captions/s, {rates[batch_size] / rates[1]:4.1f} × one at a time', flush=True)
    same = all(written == sentences[1] for written in sentences.values())
    print(f'{"the same sentences" if same else "SENTENCES DIFFER"}; {caption.settings}; {torch.get_num_threads()} threads, {platform.machine()}, '
          f'{os.cpu_count()} cores, torch {torch.__version__}, transformers {transformers.__version__}' + (f', {torch.cuda.get_device_name()}' if torch.cuda.is_available() else ''))
