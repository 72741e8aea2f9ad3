"SPIGA through our windows gives the points and poses of SPIGA's own code"
import importlib
import numpy as np
import pytest
import torch
from PIL import Image
from facecontrol.detect import SCHEMES, load_detector, load_finder, pick_square, spiga_face, square_around
from facecontrol.faces import draw_face, sample_face
from facecontrol.landmarks import landmark_box
from upstream_spiga import random_weights, stood_in, upstream

def cases():
    "Pictures and boxes: small, large, in the corner, half outside, wide, on the border of pixels (a side of 512 px), several in one"
    faces = [draw_face(sample_face(seed), size) for seed, size in ((1, 96), (2, 700))]
    small, large = (face.image for face in faces)
    scene = Image.fromarray(np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))
    scene.paste(large.resize((320, 320)), (300, 100))
    return [(small, landmark_box(faces[0].visible)), (large, landmark_box(faces[1].visible)),
            (scene, (320, 130, 200, 240)), (scene, (560, -40, 180.5, 122.25)), (scene, (100, 80, 320, 200))]

@pytest.fixture(scope='module')
def both(tmp_path_factory):
    "Ours and theirs on the same weights: landmarks `(n, 68, 2)` and poses `(n, 6)` of each"
    weights = tmp_path_factory.mktemp('weights')/'spiga_300wpublic.pt'
    windows = np.stack([pick_square(image, square_around(box), 256) for image, box in cases()])
    random_weights(weights, pictures=windows)
    detect, theirs = load_detector('spiga', weights, 'cpu'), upstream(weights)
    images, boxes = zip(*cases())
    ours = detect(images, boxes, with_pose=True)
    seen = [theirs(np.asarray(image)[..., ::-1].copy(), [list(box)]) for image, box in cases()]
    return dict(ours=[np.stack(part) for part in zip(*ours)], boxes=boxes, weights=weights,
                theirs=[np.array([s[part][0] for s in seen]) for part in ('landmarks', 'headpose')])

def test_the_points_are_theirs(both):
    assert np.abs(both['ours'][0] - both['theirs'][0]).max() < 1e-3

def test_the_poses_are_theirs(both):
    assert np.abs(both['ours'][1] - both['theirs'][1]).max() < 1e-3

def test_the_weights_look_at_the_picture(both):
    "Or parity would be easy: the same face pasted into every window"
    points = np.stack([(p - box[:2]) / max(box[2:]) for p, box in zip(both['theirs'][0], both['boxes'])])
    assert points.std(0).mean() > 1e-4 and both['theirs'][1][:, :3].std(0).min() > .02
    for p, box in zip(both['theirs'][0], both['boxes']): assert np.ptp(p, axis=0).max() < 5 * max(box[2:])

def test_windows_are_theirs_to_the_pixel():
    "Also where every sample lies on the border of two pixels"
    with stood_in(): crop = importlib.import_module('spiga.data.loaders.transforms').TargetCrop((256, 256), 1.6)
    rng = np.random.default_rng(1)
    image = Image.fromarray(rng.integers(0, 256, (300, 400, 3), dtype=np.uint8))
    boxes = [(100, 80, 320, 200), (3, 5, 160, 20), *np.c_[rng.uniform(-50, 350, (60, 2)), rng.uniform(5, 500, (60, 2))].tolist(),
             *rng.integers(1, 400, (60, 4)).tolist()]
    for box in boxes:
        theirs = np.asarray(crop({'image': image, 'bbox': list(box)})['image'])
        assert np.array_equal(pick_square(image, square_around(box), 256), theirs), box

@pytest.mark.parametrize('scheme', SCHEMES)
def test_what_it_knows_beforehand_is_theirs(scheme):
    "Parity holds for every scheme: they differ in nothing but their weights, their average face and its edges"
    with stood_in():
        theirs = importlib.import_module('spiga.inference.config').ModelConfig(scheme, load_model_url=False)
        known = importlib.import_module('spiga.inference.pretreatment').AddModel3D(
            theirs.dataset.ldm_ids, ftmap_size=theirs.ftmap_size, focal_ratio=theirs.focal_ratio, totensor=True)()
    face, camera, groups = spiga_face(scheme)
    assert np.allclose(face, known['model3d'], atol=1e-6) and np.allclose(camera, known['cam_matrix'], atol=1e-6)
    assert groups == theirs.dataset.num_edges and len(face) == theirs.dataset.num_landmarks == 68

def test_half_precision_leaves_the_points_where_they_were(both):
    "Roughly: rounding travels further through weights at random than through trained ones"
    image, box = cases()[0]
    half, = load_detector('spiga', both['weights'], 'cpu', dtype=torch.bfloat16)([image], [box])
    assert 0 < np.abs(half - both['ours'][0][0]).max() < .02 * max(box[2:])

def test_an_empty_picture_never_reaches_the_network(both):
    detect = load_detector('spiga', both['weights'], 'cpu', find=load_finder())
    assert detect([Image.new('RGB', (300, 200))]) == [None]
    with pytest.raises(ValueError, match=r'boxes\[0\] must be finite'): detect([Image.new('RGB', (300, 200))], [(0, float('nan'), 9, 9)])
