"How fast a mask is drawn, beside a Matplotlib figure per mask (the published way), on drawn faces at 512 px"
import time
import matplotlib
matplotlib.use('agg')
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from facecontrol.faces import draw_face, sample_face
from facecontrol.landmarks import GROUPS, draw_mask
from facecontrol.store import origin

def figure_mask(face, size=512):
    figure = plt.figure(figsize=(size / 72, size / 72), dpi=72, facecolor='black')
    axis = figure.add_axes((0, 0, 1, 1))
    axis.axis('off')
    axis.set(xlim=(-.5, size - .5), ylim=(size - .5, -.5))
    for points, rgb, closed in GROUPS.values():
        corners, colour = face[points], np.array(rgb) / 255
        codes = [Path.MOVETO] + [Path.LINETO] * (len(corners) - 1)
        if closed: corners, codes = np.r_[corners, corners[:1]], [*codes, Path.CLOSEPOLY]
        axis.add_patch(PathPatch(Path(corners, codes), facecolor=colour if closed else 'none', edgecolor=colour, lw=4))
    figure.canvas.draw()
    mask = np.array(figure.canvas.buffer_rgba())[..., :3]
    plt.close(figure)
    return mask

def milliseconds(draw, face): # of the processor, so that neighbours on the machine don't count
    start = time.process_time()
    draw(face)
    return 1000 * (time.process_time() - start)

if __name__ == '__main__':
    faces = [draw_face(sample_face(seed), 512).visible for seed in range(24)]
    different = sum((np.asarray(draw_mask(face)) != figure_mask(face)).any(axis=-1).sum() for face in faces)
    pairs = np.array([(milliseconds(figure_mask, face), milliseconds(draw_mask, face)) for _ in range(3) for face in faces])
    figure, ours = np.median(pairs, axis=0)
    print(f'figure {figure:.1f} ms, draw_mask {ours:.2f} ms a mask: {figure / ours:.0f} times faster, {different} pixels different; '
          f'matplotlib {matplotlib.__version__}, {origin()}')
