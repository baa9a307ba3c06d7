"""What a run came to, of what its ranks report."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import pydantic

from ppll.checkpoints.recovery import best_validation
from ppll.errors import PpllError, RunFolderError, first_problem
from ppll.job import Job, RankResult
from ppll.mesh import Mesh
from ppll.metrics import Tally
from ppll.run_folder import RunFolder

__all__ = ["ReplicasDiffer", "Result", "merge_results", "read_result", "written"]


class ReplicasDiffer(PpllError):
    """Replicas of a stage have come to different values."""


_LARGEST: Final = 700.0
"""Loss in nats beyond which a perplexity has no number."""


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Attributes:
        step: Training batches that every block has learned from.
        epoch: Whole epochs among them.
        train_seconds: From the first batch to the stop, without the evaluations; of a run that went
            on, since the last start that trained.
        samples_per_second: Training samples per second of ``train_seconds``; 0 where a start only
            tested what one before it, killed before its result, had trained. Then seconds, busy
            fraction and bytes are those of the test.
        test_accuracy: Share of test samples that the final output gets right; none where the run
            was interrupted before the test, and where values are predicted.
        exit_accuracy: The same for every block's exit, the final output last; none for a block that
            makes no prediction.
        validation_accuracy: The final output's on the validation part, where there is one.
        num_blocks: Blocks of the network.
        num_stages: Stages; without replicas, the processes that trained it.
        busy_fraction: Of every stage, the share of time in which it did not wait for another
            process; the mean of its replicas.
        peak_memory_bytes: Of every stage, the most memory its process had, in any replica; on a GPU
            beside what it had there before the run.
        training_peak_bytes: The same before it first saved anything: what training alone takes.
        weights_sha256: Of all blocks' parameters and buffers, and of the averages of parameters
            where the run keeps some; the same on every placement.
        run_folder: Where everything is.
        best_step: Training batches of the kept checkpoint with the best validation accuracy, or
            loss where values are predicted; none where the recipe does not keep it.
        best_validation_accuracy: What it is.
        test_perplexity: Of a language model: exponential of the final output's mean loss on a test
            token; none elsewhere, with another loss than cross-entropy, and with label smoothing.
        exit_perplexity: The same for every block's exit, the final output last; none for a block
            that makes no prediction.
        num_replicas: Of every stage, the processes that shared each of its batches.
        stopped: Whether ``Trainer.stop`` ended the run at ``step``, before its end, and it was
            tested there.
        test_loss: Mean loss of the final output on a test sample (a test token where each has a
            target); none where it is not finite.
        exit_loss: The same for every block's exit, the final output last; none for a block that
            makes no prediction.
        validation_loss: The final output's on the validation part, where there is one.
        best_validation_loss: That of ``best_step``, where values are predicted.
    """

    step: int
    epoch: int
    train_seconds: float
    samples_per_second: float
    test_accuracy: float | None
    exit_accuracy: tuple[float | None, ...]
    validation_accuracy: float | None
    num_blocks: int
    num_stages: int
    busy_fraction: tuple[float, ...]
    peak_memory_bytes: tuple[int, ...]
    training_peak_bytes: tuple[int, ...]
    weights_sha256: str
    run_folder: str
    best_step: int | None = None
    best_validation_accuracy: float | None = None
    test_perplexity: float | None = None
    exit_perplexity: tuple[float | None, ...] | None = None
    num_replicas: tuple[int, ...] = ()
    stopped: bool = False
    test_loss: float | None = None
    exit_loss: tuple[float | None, ...] = ()
    validation_loss: float | None = None
    best_validation_loss: float | None = None


_OF_TRAINING: Final = (
    "train_seconds",
    "samples_per_second",
    "num_stages",
    "num_replicas",
    "busy_fraction",
    "peak_memory_bytes",
    "training_peak_bytes",
)
"""What a test of weights says nothing of."""

_RESULT: Final = pydantic.TypeAdapter(Result)


def merge_results(job: Job, results: Sequence[RankResult], num_blocks: int) -> Result:
    """One result of what all ranks report, the first rank's first.

    Raises:
        ReplicasDiffer: Replicas of a stage have come to different values.
    """
    mesh = job.mesh
    _check_replicas(mesh, results)
    everyone, results = results, results[: mesh.num_stages]
    stages = range(mesh.num_stages)
    replicas = [[everyone[rank] for rank in mesh.ranks(stage)] for stage in stages]
    started_s = min(r.started_s for r in everyone)
    ended_s = max(r.started_s + r.seconds for r in everyone)
    # Stages evaluate side by side; the last one is through when all are.
    seconds = ended_s - started_s - results[-1].evaluation_s
    exits: dict[str, dict[int, Tally]] = {}
    for rank_result in results:
        for split, tallies in rank_result.exits.items():
            exits.setdefault(split, {}).update(tallies)
    tested = [exits["test"][i] for i in range(num_blocks)] if "test" in exits else []
    test = [_known(tally.accuracy) for tally in tested]
    losses = [_known(tally.loss) for tally in tested]
    perplexity = _perplexities(job, tested)
    validation = exits.get("validation", {}).get(num_blocks - 1)
    lines = sorted(line for r in results for line in r.digests)
    step = results[0].step
    best = None
    if job.recipe.checkpoint.keeps_best:
        best = best_validation(job.folder)
    return Result(
        step=step,
        epoch=step // job.facts.steps_per_epoch,
        train_seconds=seconds,
        samples_per_second=sum(r.samples for r in replicas[0]) / seconds if seconds else 0.0,
        test_accuracy=test[-1] if test else None,
        exit_accuracy=tuple(test),
        validation_accuracy=_known(validation.accuracy) if validation else None,
        best_step=best.step if best else None,
        best_validation_accuracy=best.accuracy if best else None,
        best_validation_loss=best.loss if best else None,
        num_blocks=num_blocks,
        num_stages=job.num_stages,
        num_replicas=mesh.replicas,
        busy_fraction=tuple(statistics.fmean(r.busy_fraction for r in rs) for rs in replicas),
        peak_memory_bytes=tuple(max(r.peak_memory_bytes for r in rs) for rs in replicas),
        training_peak_bytes=tuple(max(r.training_peak_bytes for r in rs) for rs in replicas),
        weights_sha256=hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        run_folder=str(job.folder.path),
        test_perplexity=perplexity[-1] if perplexity else None,
        exit_perplexity=perplexity,
        test_loss=losses[-1] if losses else None,
        exit_loss=tuple(losses),
        validation_loss=_known(validation.loss) if validation else None,
        stopped=bool(tested) and step < _num_steps(job) and not job.evaluates_only,
    )


def _num_steps(job: Job) -> int:
    return job.recipe.num_steps(job.facts.steps_per_epoch)


def read_result(folder: RunFolder) -> Result:
    """What a run came to, as it is written in its folder.

    Raises:
        RunFolderError: It cannot be read.
    """
    try:
        return _RESULT.validate_json(folder.result.read_bytes())
    except OSError as error:
        raise RunFolderError(f"cannot read {folder.result}: {error.strerror}.") from None
    except pydantic.ValidationError as error:
        raise RunFolderError(
            f"cannot read {folder.result}: {first_problem(error)}. Put it back from a copy, or "
            f"remove it: the run is then tested again, but how long it took is not known."
        ) from None


def written(result: Result, folder: RunFolder, *, has_trained: bool) -> Result:
    """A result as it is written down; where a run was only tested again, what training took stays.

    Raises:
        RunFolderError: What was written before cannot be read.
    """
    before = None if has_trained or not folder.result.exists() else read_result(folder)
    if before is not None and before.step == result.step:
        result = dataclasses.replace(result, **{n: getattr(before, n) for n in _OF_TRAINING})
        if not result.exit_accuracy:
            return result  # A signal came before the test.
    folder.write_result(dataclasses.asdict(result))
    return result


def _perplexities(job: Job, tested: Sequence[Tally]) -> tuple[float | None, ...] | None:
    """Of every exit, where losses are those of tokens."""
    is_plain = not (job.recipe.loss.is_own or job.recipe.train.label_smoothing)
    if not (tested and job.facts.predicts_tokens and is_plain):
        return None
    silent = [math.isnan(tally.accuracy) for tally in tested]
    losses = [tally.loss for tally in tested]
    return tuple(None if no else _known(_exp(x)) for no, x in zip(silent, losses, strict=True))


def _exp(loss: float) -> float:
    """The exponential; not a number where there is none that JSON could hold."""
    return math.exp(loss) if loss < _LARGEST else math.nan


def _check_replicas(mesh: Mesh, results: Sequence[RankResult]) -> None:
    for rank, result in enumerate(results):
        stage = mesh.stage(rank)
        own, first = set(result.digests), set(results[stage].digests)
        if changed := sorted(line.split()[0] for line in own - first):
            raise ReplicasDiffer(
                f"rank {rank} ({mesh.place(rank)}) came to other values than rank {stage} in "
                f"{len(changed)} tensors, first {changed[0]}: they have not seen the same updates. "
                f"A parameter or buffer is changed by something that differs between replicas."
            )


def _known(value: float) -> float | None:
    """None where nothing was predicted, or there is no number that JSON could hold."""
    return value if math.isfinite(value) else None
