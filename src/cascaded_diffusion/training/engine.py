"""One network trained by the processes of one launch: torch's DistributedDataParallel, or FSDP2 where it is sharded.

The gradient of the global batch is the sum over the processes, for every example's loss is already divided by the
global batch size; neither engine divides again.
"""

# Without deferred annotations: DistributedDataParallel compares those of a communication hook with its own types.
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from cascaded_diffusion.networks.compiling import CompileChoice, compiled
from cascaded_diffusion.ranks import current_ranks, together
from cascaded_diffusion.training.sharding import is_sharded, whole

__all__ = ["Engine"]


def _sum(state: None, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None  # it is asynchronous
    summed: torch.futures.Future[torch.Tensor] = work.get_future().then(lambda done: done.value()[0])
    return summed


class _Compiled(nn.Module):
    """A network whose forward pass is another, compiled call of it; its parameters are the network's."""

    def __init__(self, network: nn.Module, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network = network
        self._call = call

    def forward(self, *args: Tensor, **kwargs: Tensor | None) -> Tensor:
        return self._call(*args, **kwargs)


class Engine:
    """Runs a network so that after the last backward pass of a step every process has the global batch's gradient.

    A single process, and a sharded network, is called as it is. Otherwise DistributedDataParallel sums the gradients
    bucket by bucket while the backward pass goes on.

    Attributes:
        call: what is called with the network's inputs.
        sorts_buckets: whether the first synchronised pass settles the order of sums, and must come before any that
            counts: the buckets are packed anew after it, in the order in which gradients came. Without it a resumed
            run would sum its first step in another order than the run that was never interrupted.
    """

    def __init__(self, network: nn.Module, device: torch.device, compile: CompileChoice = "off") -> None:
        """``network`` is on ``device``, and sharded already if it is to be; a sharded one is not compiled."""
        self._network = network
        self._parallel: DistributedDataParallel | None = None
        self.sharded = is_sharded(network)
        call = network if self.sharded else compiled(network, compile, device)
        if current_ranks().world > 1 and not self.sharded:
            # No static graph: it would forbid leaving out the sums of the passes before a step's last.
            self._parallel = DistributedDataParallel(
                network if call is network else _Compiled(network, call),
                init_sync=False,  # same seed, same weights; Trainer.check_ranks_agree finds out if not
                gradient_as_bucket_view=True,
            )
            self._parallel.register_comm_hook(None, _sum)
        self.call: Callable[..., Tensor] = call if self._parallel is None else self._parallel
        self.sorts_buckets = self._parallel is not None

    def close(self) -> None:
        """Let go of the process group, which must not outlive :func:`cascaded_diffusion.ranks.launched_ranks`.

        The reducer is C++ and ends its connections when the last reference to it goes. If that is an error's traceback,
        after the block, Python's lock is held, for which the connections' threads wait: the process would never end.
        """
        if self._parallel is not None:
            del self._parallel.reducer, self._parallel.logger
        self._parallel, self.call = None, self._network

    def accumulating(self, *, last: bool) -> AbstractContextManager[object]:
        """The context of one forward and backward pass; only in a step's ``last`` do the processes exchange gradients.

        A sharded network exchanges them in every pass: between passes a process then holds its part of the gradient
        alone, and memory is what it is sharded for.
        """
        if self._parallel is None:
            return nullcontext() if current_ranks().world == 1 else together()
        return together() if last else self._parallel.no_sync()

    def clip(self, limit: float) -> Tensor:
        """Scale the gradient down to norm ``limit`` if it is longer, and return the norm it had, of all shards."""
        with together():
            norm = torch.nn.utils.clip_grad_norm_(self._network.parameters(), limit)
            return whole(norm)
