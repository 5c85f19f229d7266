"""From a configuration to a finished folder of experts; repeating the call goes on where the last one stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import yaml
from torch import Tensor

from fastdistill.data.sources import RealData, load_configured
from fastdistill.data.split import stratified_split
from fastdistill.data.store import ImageStore
from fastdistill.derivatives.layout import Layout
from fastdistill.experts_config import ExpertsConfig
from fastdistill.failures import RunFailed, Stopped
from fastdistill.files import held, sweep, write_whole
from fastdistill.loop.environment import available_memory, describe_environment, prepare_process
from fastdistill.loop.experts_plan import (
    ExpertsPlan,
    describe_derivatives,
    describe_disk,
    describe_memory,
    make_experts_plan,
    needed_memory,
)
from fastdistill.loop.experts_state import State, load_state, save_state
from fastdistill.loop.experts_trainer import Chunk, Trainer, expert_module, strategy_of
from fastdistill.loop.fingerprint import seen_hash
from fastdistill.loop.plan import resolve_device
from fastdistill.loop.retry import is_out_of_memory
from fastdistill.loop.run import config_hash, refuse_another
from fastdistill.loop.sizes import Sizes
from fastdistill.loop.stop import Stop
from fastdistill.progress import Silent
from fastdistill.students.experts import DESCRIPTION, Experts
from fastdistill.students.experts_writer import ExpertsWriter

_STATES = "checkpoints"
_NAMED = 3  # experts named at once; the rest is counted


def train_experts(
    config: ExpertsConfig,
    data: RealData | None = None,
    *,
    progress: Silent | None = None,
    stop: Stop | None = None,
    stop_after: int | None = None,
) -> Experts | None:
    """Trains experts, or goes on training them.

    Args:
        config: the experts.
        data: the real images; loaded by the configuration when not given.
        progress: what is said meanwhile.
        stop: asked from outside to stop; the epoch is then finished and saved.
        stop_after: stop after this many epochs of chunks, their starts counted too, in this call.

    Returns:
        The experts, or None when ``stop_after`` ended it before the end.

    Raises:
        ValueError: for a folder that holds something else or that another process writes to, for data that do not fit
            the configuration, and for too little memory or disk.
        RunFailed: when an expert's weights stop being finite or memory runs out; what was saved is kept.
        Stopped: when asked to stop; repeating the call goes on.
    """
    with held(config.folder):
        return _train(config, data, progress or Silent(), stop or Stop(), stop_after)


def _train(
    config: ExpertsConfig, data: RealData | None, progress: Silent, stop: Stop, stop_after: int | None
) -> Experts | None:
    folder, states = config.folder, config.folder / _STATES
    refuse_another(folder, config.as_dict())
    sweep(folder)
    sweep(states)
    if (folder / DESCRIPTION).exists():
        finished = Experts.open(folder)
        shutil.rmtree(states, ignore_errors=True)  # where the process was killed in the middle of that
        progress.say(f"{folder} is finished already")
        return finished
    data = data or load_configured(config.data)
    digest, images_hash = config_hash(config.as_dict()), seen_hash(data, config.data.validation_fraction, config.seed)
    state = load_state(states, config_hash=digest, data_hash=images_hash)
    sizes = Sizes.of(data)
    layout = Layout.of(expert_module(config, sizes.shape, len(sizes.classes)))
    writer = ExpertsWriter(folder, (config.count, config.epochs + 1, layout.size), config.storage)
    plan = state.plan if state else make_experts_plan(config, sizes)
    device = _device_of(plan, resumed=state is not None)
    progress.say(describe_derivatives(config, plan, sizes))
    progress.say(describe_memory(needed_memory(config, plan, sizes), available_memory(device), device))
    progress.say(describe_disk(writer.bytes, writer.missing, shutil.disk_usage(folder).free))
    prepare_process(plan.threads)
    torch.backends.cudnn.allow_tf32 = plan.tf32
    kept, _ = stratified_split(data.train.labels, config.data.validation_fraction, config.seed)
    course = _Course(config, data.train.subset(kept).to(device), data.test.to(device), writer, progress.say)
    # only now, so that settings which do not work out leave no folder that refuses their correction
    write_whole(folder / "config.yaml", yaml.safe_dump(config.as_dict(), sort_keys=False).encode())
    write_whole(folder / "environment.json", json.dumps(describe_environment(), indent=1).encode())
    if not writer.begin() and state is not None:
        progress.say("the weights that were written are gone or damaged: starting again")
        state = None
    if state is not None:
        state = replace(state, chunk=state.chunk.to(device))
        progress.say(f"continuing after epoch {state.epoch} of experts {state.first} to {state.following - 1}")
        if plan.torch_version != torch.__version__:
            progress.say(f"it began under torch {plan.torch_version}: under {torch.__version__} bits may differ")
    steps, total = 0, config.count * config.epochs
    with progress.stage("training experts", total, state.units if state else 0) as advance, stop.deferred():
        while not (state and state.finished) and steps != stop_after and not stop.asked:
            state = course.following(state, plan)
            save_state(states, state, config_hash=digest, data_hash=images_hash)
            advance(state.units, f"loss {float(state.chunk.loss.mean()):.3f}" if state.epoch else "")
            steps += 1
    if stop.asked:
        if state is not None:
            progress.say(f"saved epoch {state.epoch} of experts {state.first} to {state.following - 1}")
        raise Stopped(stop.asked)
    if state is None or not state.finished:
        return None
    sha256 = writer.verify(state.sums)
    writer.publish()
    training, test = state.accuracies.T.tolist()
    statistics = data.train.normalization
    writer.describe(
        sums=state.sums,
        sha256=sha256,
        layout=layout,
        student=config.as_dict()["student"],
        dataset=data.name,
        data_hash=images_hash,
        zca=config.data.zca,
        accuracy={"training": training, "test": test},
        normalization={"mean": statistics.mean, "std": statistics.std},
        augmentation=strategy_of(config),
        torch=torch.__version__,
        config_hash=digest,
        config=config.as_dict(),
        plan=state.plan.as_dict(),
        training_loss=state.losses.tolist(),
    )
    shutil.rmtree(states, ignore_errors=True)
    return Experts.open(folder)


@dataclass(frozen=True)
class _Course:
    """What follows a state: the next epoch of its chunk, or the start of the next chunk."""

    config: ExpertsConfig
    train: ImageStore
    test: ImageStore
    writer: ExpertsWriter
    say: Callable[[str], None]
    made: dict[ExpertsPlan, Trainer] = field(default_factory=dict)  # at most one

    def following(self, state: State | None, plan: ExpertsPlan) -> State:
        """The state after one epoch more, its weights written.

        Raises:
            RunFailed: for weights that are not finite, or without memory for a single expert.
        """
        config, (count, epochs) = self.config, (self.config.count, self.config.epochs)
        if state is None:
            nothing = torch.zeros(count, epochs + 1, dtype=torch.int64)
            sums, losses, accuracies = nothing, nothing[:, 1:].double(), nothing[:, :1].double().repeat(1, 2)
        else:
            plan, sums, losses, accuracies = state.plan, state.sums, state.losses, state.accuracies
        if state is None:
            first, epoch = 0, 0
        elif state.epoch == epochs:
            first, epoch = state.following, 0
        else:
            first, epoch = state.first, state.epoch + 1
        device = self.train.device

        def attempt(trainer: Trainer) -> tuple[Chunk, Tensor | None]:
            if state is None or not epoch:
                chunk = trainer.start(torch.arange(first, min(first + plan.chunk, count), device=device))
            else:
                chunk = trainer.epoch(state.chunk, epoch)
            if epoch < epochs:
                return chunk, None
            right = [trainer.accuracy(chunk.weights, store) for store in (self.train, self.test)]
            return chunk, torch.stack(right, dim=1).cpu()

        plan, (chunk, right) = self._retrying(plan, attempt)
        finite = chunk.weights.isfinite().all(1)
        if not bool(finite.all()):
            lost = chunk.indices[~finite].tolist()
            named = ", ".join(map(str, lost[:_NAMED])) + (f" and {len(lost) - _NAMED} more" if lost[_NAMED:] else "")
            raise RunFailed(
                f"expected experts with finite weights, got others in epoch {epoch} of expert {named}: lower "
                f"--learning_rate ({config.learning_rate}) under another --name"
            )
        ours = slice(first, first + len(chunk.indices))
        sums, losses, accuracies = sums.clone(), losses.clone(), accuracies.clone()
        sums[ours, epoch] = self.writer.write(first, epoch, chunk.weights)
        if epoch:
            losses[ours, epoch - 1] = chunk.loss.double().cpu()
        if right is not None:
            accuracies[ours] = right
        return State(chunk=chunk, epoch=epoch, sums=sums, losses=losses, accuracies=accuracies, plan=plan)

    def _retrying(
        self, plan: ExpertsPlan, attempt: Callable[[Trainer], tuple[Chunk, Tensor | None]]
    ) -> tuple[ExpertsPlan, tuple[Chunk, Tensor | None]]:
        """Attempts something by a plan, and by halved ones while it runs out of memory."""
        while True:
            try:
                if plan not in self.made:  # what a trainer has compiled does for all epochs
                    self.made.clear()
                    self.made[plan] = Trainer(self.config, self.train, plan.training, plan.testing)
                return plan, attempt(self.made[plan])
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                smaller = plan.halved()
                if smaller is None:
                    raise RunFailed(
                        "expected enough memory for experts, got none: free some, or lower --chunk, --batch or "
                        "--student.width under another --name"
                    ) from error
            # behind the handler, since the error's traceback holds every tensor of the attempt
            plan = smaller
            self.made.clear()
            if plan.device == "cuda":
                torch.cuda.empty_cache()
            self.say(f"out of memory: going on with {plan.training.students} experts in one program")


def _device_of(plan: ExpertsPlan, *, resumed: bool) -> torch.device:
    """The plan's device; training goes on where it began, since another device gives other bits."""
    if resumed and plan.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "expected the CUDA device that these experts began on, found none: go on where there is one, or start "
            "again under another --name"
        )
    return resolve_device(plan.device)
