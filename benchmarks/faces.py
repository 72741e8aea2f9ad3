"How fast faces are drawn at 128 px: CPU time of one, and faces a second from `draw_faces` on two cores"
import os, time
import cv2
from facecontrol.faces import STYLES, draw_face, draw_faces, sample_face
from facecontrol.store import origin

def cpu_ms(style, n=100): # CPU milliseconds of one face, best of three rounds
    draw_face(sample_face(0, style=style))  # noise and brush strokes are made once
    rounds = []
    for _ in range(3):
        start = time.process_time()
        for seed in range(n): draw_face(sample_face(seed, style=style))
        rounds.append((time.process_time() - start) / n * 1e3)
    return min(rounds)

if __name__ == '__main__': # `draw_faces` spawns
    cv2.setNumThreads(1)
    print('CPU ms a face:', ', '.join(f'{style} {cpu_ms(style):.1f}' for style in STYLES))
    start = time.perf_counter()
    draw_faces(range(512), workers=2)
    seconds = time.perf_counter() - start
    print(f'{512 / seconds:.0f} faces/s with two workers, {seconds:.1f} s for 512 with the start of the workers; '
          f'{os.cpu_count()} cores, OpenCV {cv2.__version__}, {origin()}')
