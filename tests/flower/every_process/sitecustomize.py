"""Makes the tests' network known in every process of a deployment, Flower's included.

Python imports this module when it starts, if its folder is in ``PYTHONPATH``. Networks are registered when
``prrfl.models`` is imported, so that processes without a network do not wait for PyTorch.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder


class _RegisterTiny(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "prrfl.models":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path)
        load = spec.loader.exec_module

        def load_and_register(module):
            load(module)
            from tests.networks import tiny

            module.NETWORKS.builtin = {**module.NETWORKS.builtin, "tiny": tiny}

        spec.loader.exec_module = load_and_register
        return spec


sys.meta_path.insert(0, _RegisterTiny())
