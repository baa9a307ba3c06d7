"""What the processes of several hosts agree on before they train."""

from __future__ import annotations

import dataclasses
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import pydantic
import torch

from ppll.claim import Claim
from ppll.config import Recipe
from ppll.data_facts import DataFacts
from ppll.errors import RecipeError, RunFolderError, UsageError
from ppll.job import Job
from ppll.placement import mesh_of_size, meshes_of
from ppll.recipe_text import shown
from ppll.run_folder import PROOF_NAME
from ppll.torchrun import num_restarts
from ppll.world import World

__all__ = [
    "agree_on",
    "check_world",
    "count_starts",
    "hear_facts",
    "hear_job",
    "private_folder",
    "prove_folder",
    "tell_facts",
    "tell_job",
]

_SHORT_S: Final = 120.0
_FACTS = pydantic.TypeAdapter(DataFacts)


def check_world(world: World, recipe: Recipe, max_restarts: int) -> Recipe:
    """The recipe on as many stages as the processes make, each with its replicas.

    Raises:
        UsageError: It asks for something else.
    """
    mesh = mesh_of_size(recipe.train.replicas, world.size)
    if mesh is None:
        raise RecipeError(
            f"torchrun has started {world.size} processes, but stages with train.replicas = "
            f"{shown(recipe.train.replicas)} take {_sizes(recipe)}: start as many."
        )
    stages = mesh.num_stages
    if recipe.runtime.stages not in (1, stages):
        raise RecipeError(
            f"torchrun has started {world.size} processes, which make {stages} stage(s), but "
            f"runtime.stages = {recipe.runtime.stages}: leave it out, or start as many."
        )
    if stages > recipe.split.blocks:
        raise RecipeError(
            f"torchrun has started {world.size} processes, which make {stages} stages, but "
            f"split.blocks = {recipe.split.blocks}, and a stage runs one block or more: start "
            f"fewer, or ask for more blocks."
        )
    if max_restarts:
        raise UsageError("torchrun does the restarts: give --max-restarts to it, not to ppll.")
    return recipe.with_settings([f"runtime.stages={stages}"])


def _sizes(recipe: Recipe) -> str:
    """How many processes there may be, in words."""
    replicas = recipe.train.replicas
    if isinstance(replicas, int):
        return f"a multiple of {replicas} processes"
    return f"{' or '.join(str(mesh.size) for mesh in meshes_of(replicas))} processes"


def agree_on(world: World, recipe: Recipe, out: Path) -> None:
    """Make sure that every process was given the same.

    Raises:
        UsageError: This one was given something else than the first.
    """
    mine = {
        "recipe": recipe.to_toml(),
        "--out": str(out.absolute()),
        "torch": torch.__version__,
    }
    if world.rank == 0:
        world.publish("terms", mine)
        return
    terms = world.read("terms", _SHORT_S)
    if different := [key for key in mine if mine[key] != terms[key]]:
        key = different[0]
        found = "" if key == "recipe" else f" ({mine[key]}, rank 0 has {terms[key]})"
        raise RecipeError(
            f"rank {world.rank} on host {world.host_name} was started with another {key} than rank "
            f"0{found}: give every host the same command line, files and versions."
        )


def tell_facts(world: World, facts: DataFacts) -> None:
    """Tell the others what they must know of the data."""
    world.publish("facts", dataclasses.asdict(facts))


def hear_facts(world: World) -> DataFacts:
    """What the first process says of the data."""
    return _FACTS.validate_python(world.read("facts"))


def prove_folder(world: World, run: Path) -> None:
    """Make sure that all processes see the same run folder and may write there.

    Raises:
        RunFolderError: This one does not.
    """
    proof = run / PROOF_NAME
    if world.rank == 0:
        token = secrets.token_hex(16)
        proof.write_text(token, encoding="utf-8")
        world.publish("meeting", token)
    else:
        token = world.read("meeting")
        _check_proof(world, proof, token)
    world.meet("proved", _SHORT_S)
    if world.rank == 0:
        proof.unlink()


def _check_proof(world: World, proof: Path, token: str) -> None:
    found = None
    with suppress(OSError):
        found = proof.read_text(encoding="utf-8")
    if found != token:
        raise RunFolderError(
            f"rank {world.rank} on host {world.host_name} does not see the run folder "
            f"{proof.parent} that rank 0 has made: give --out on a file system that all hosts "
            f"share."
        )
    try:
        with tempfile.TemporaryFile(dir=proof.parent):
            pass
    except OSError as error:
        raise RunFolderError(
            f"rank {world.rank} on host {world.host_name} cannot write to the run folder "
            f"{proof.parent}: {error}."
        ) from None


def tell_job(world: World, job: Job) -> Job:
    """Tell the others where the run starts from."""
    assert job.claim is not None
    terms: dict[str, Any] = {
        "start_step": job.start_step,
        "generation": job.generation,
        "claim": job.claim.token,
        "fresh": sorted(job.fresh),
        "keeps_optimizer": job.keeps_optimizer,
        "secret": secrets.token_hex(32),
    }
    world.publish("job", terms)
    return _with_terms(job, terms)


def hear_job(world: World, job: Job) -> Job:
    """The job as the first process has begun it."""
    return _with_terms(job, world.read("job"))


def _with_terms(job: Job, terms: dict[str, Any]) -> Job:
    return dataclasses.replace(
        job,
        start_step=terms["start_step"],
        generation=terms["generation"],
        claim=Claim(job.folder.path, terms["claim"]),
        fresh=frozenset(terms["fresh"]),
        keeps_optimizer=terms["keeps_optimizer"],
        secret=bytes.fromhex(terms["secret"]),
    )


def count_starts(world: World, out: Path) -> int:
    """How often torchrun has started this run before; asked once a start, by the first process.

    Agents count alike only the starts that follow a failure, and hosts that come or go make more.
    What the store has counted is lost with the host of rank 0; then the agent's number is all there
    is.
    """
    counted: int = world.lasting.add(f"starts/{out.absolute()}", 1)
    return max(counted - 1, num_restarts())


def private_folder(world: World) -> Path:
    """A folder in which the processes of this host meet; whoever leaves it removes it."""
    key = f"folder/{world.host_index}"
    if not world.speaks:
        return Path(world.read(key, _SHORT_S))
    folder = tempfile.mkdtemp(prefix="ppll-")
    world.publish(key, folder)
    return Path(folder)
