__version__ = "0.1.0"

import logging

# When they are imported these warn of parts that are missing on purpose: the torchvision they ask for would break torch here.
for _name in ('bitsandbytes', 'diffusers.quantizers.torchao', 'torch.utils._pytree', 'torchao', 'transformers.utils.import_utils'):
    logging.getLogger(_name).setLevel(logging.ERROR)
