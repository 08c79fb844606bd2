"""The base class of batches that TorchRec's pipelines move between devices."""

from torchrec.streamable import Pipelineable

from learn_torchrec.movable import Movable


class PipelineableBatch(Movable, Pipelineable):
    """A batch as a whole; its parts need only be `Movable`."""
