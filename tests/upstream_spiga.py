"SPIGA's own inference code, also without a graphics card: what it needs and we don't have is stood in for"
import contextlib, importlib, io, sys, types, warnings
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch
import torch

def _modules():
    "The parts of pkg_resources and torchvision that its inference imports"
    resources = types.ModuleType('pkg_resources')
    resources.resource_filename = lambda package, name: str(Path(find_spec(package).origin).parent/name)
    vision, transforms = types.ModuleType('torchvision'), types.ModuleType('torchvision.transforms')
    class Compose(list):
        def __call__(self, sample):
            for step in self: sample = step(sample)
            return sample
    transforms.Compose, vision.transforms = Compose, transforms
    return {'pkg_resources': resources, 'torchvision': vision, 'torchvision.transforms': transforms}

@contextlib.contextmanager
def stood_in(
    device='cpu', # 'cuda': leave `.cuda()` alone
):
    "While it runs: the modules are there, and what should go to a graphics card stays, unless there is one"
    stay = (lambda self, *a, **k: self) if device == 'cpu' else None
    missing = {name: module for name, module in _modules().items() if name not in sys.modules}
    sys.modules.update(missing)
    try:
        with patch.object(torch.Tensor, 'cuda', stay or torch.Tensor.cuda), patch.object(torch.nn.Module, 'cuda', stay or torch.nn.Module.cuda), \
             contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for name in missing: sys.modules.pop(name, None)

def upstream(
    weights, # .pt file
    device='cpu', # or 'cuda'
):
    "`inference(bgr, boxes)` → its dict of lists 'landmarks' and 'headpose'; the boxes lie in one picture"
    weights = Path(weights)
    with stood_in(device):
        config = importlib.import_module('spiga.inference.config').ModelConfig('300wpublic', load_model_url=False)
        config.model_weights, config.model_weights_path = weights.name, str(weights.parent)
        framework = importlib.import_module('spiga.inference.framework').SPIGAFramework(config)
    def inference(bgr, boxes):
        with stood_in(device), torch.no_grad(): return framework.inference(bgr, boxes)
    return inference

def random_weights(
    file, # .pt
    pictures, # `(n, 256, 256, 3)` uint8, to normalise on
):
    "Weights at random, but tame: normalised on a few pictures, heads in front of the camera, points that move when the picture does"
    from spiga.models.spiga import SPIGA
    from facecontrol.detect import spiga_face
    torch.manual_seed(0)
    network = SPIGA(num_landmarks=68, num_edges=13).train()
    norms = [m for m in network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms: norm.momentum = 1.
    images = torch.from_numpy(pictures).flip(3).permute(0, 3, 1, 2) / 255
    face, camera = (torch.tensor(a, dtype=torch.float32).expand(len(images), -1, -1) for a in spiga_face()[:2])
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        network.pose_fc.weight.mul_(torch.tensor([.5, .5, .5, .01, .01, .01])[:, None])
        network.pose_fc.bias.copy_(torch.tensor([10, 5, -8, 0, 0, 3.5]))
        for step in network.gcn: step.decoder.decoder[-1].weight.mul_(.02) # untrained points would leap, and carry rounding errors far
        network((images, face, camera))
    torch.save(network.state_dict(), file)
