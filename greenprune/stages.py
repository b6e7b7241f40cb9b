"""Running a stage: what it depends on, where its inputs are, and who runs it.

A stage's function knows nothing of all this (config/stages.py names it). `perform` runs one here; a sweep passes
`Stages` another `execute`, which runs each as a Ray task. Both give the same artifacts for the same configuration.
"""

from __future__ import annotations

import functools
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from greenprune import assets
from greenprune._callable import function_named
from greenprune.config import FIRST_ENGINE, STAGES, CalibrationConfig, ModelConfig
from greenprune.config.dependencies import contents, minor_versions, versions, with_contents
from greenprune.energy.exclusive import Exclusive
from greenprune.errors import GreenpruneError, WrongNode
from greenprune.memory.halving import fitted
from greenprune.storage import Storage
from greenprune.store import Artifact, StageCall, Store

log = logging.getLogger("greenprune")
CHECKPOINT = "checkpoint"  # a model's folder in its artifact


@dataclass(frozen=True)
class Source:
    """The dense model, as a stage's parent."""

    config: ModelConfig
    key: str


@dataclass(frozen=True)
class Request:
    """One stage to run somewhere: what its artifact depends on, and where its inputs are.

    section: the configuration that the artifact depends on; inputs: parents by parameter name, as the stage's entry
    lists them; options: parameters that don't change the artifact; exclusive: what it wants to itself
    (energy/exclusive.py); any_versions: an artifact that other versions of libraries made will do as well.

    libraries, texts: the versions that decide its numbers, and what stands for each text file (config/dependencies.py),
    both as they are where the request is made: on the head, whatever node the stage runs on. So is mark: which storage
    it is (energy/exclusive.py); None where the same process runs the stage. halved: the work is done with half the
    batch, for the same artifact: memory didn't suffice for the whole.
    """

    stage: str
    section: Any
    inputs: Mapping[str, Source | Artifact | None]
    facts: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    exclusive: Exclusive = "none"
    any_versions: bool = False
    libraries: Mapping[str, str] | None = None
    texts: Mapping[str, str] | None = None
    halved: bool = False
    mark: str | None = None

    def __post_init__(self) -> None:
        needs = STAGES[self.stage].needs
        assert set(self.inputs) == set(needs), f"{self.stage} needs {needs}, got {list(self.inputs)}"
        if self.libraries is None:
            libraries = (*STAGES[self.stage].libraries, *self.section.libraries())
            object.__setattr__(self, "libraries", minor_versions(libraries))
        if self.texts is None:
            object.__setattr__(self, "texts", contents(self._named))

    def smaller(self) -> Request | None:
        """The same with half the batch; None where it is so already, or the batch is a sample, or what is measured."""
        text = self.facts.get("calibration")
        part = CalibrationConfig(**{**CalibrationConfig.LATER, **text}) if text else self.section
        return None if self.halved or part.halved() is None else replace(self, halved=True)

    def parts(self) -> tuple[Any, Mapping[str, Any]]:
        """The section and the facts that the work is done with."""
        if not self.halved:
            return self.section, self.facts
        if text := self.facts.get("calibration"):
            less = CalibrationConfig(**{**CalibrationConfig.LATER, **text}).halved()
            assert less is not None, "only what can be halved is"
            return self.section, {**self.facts, "calibration": less.identity()}
        return self.section.halved(), self.facts

    @property
    def _named(self) -> dict[str, Any]:
        return {"config": self.section.identity(), **self.facts}

    def call(self, place: Mapping[str, Any] | None = None) -> StageCall:
        """The call of the stage; place: what else its artifact depends on where it is bound to a machine."""
        section = {**with_contents(self._named, self.texts or {}), **(place or {})}
        parents = {name: parent.key for name, parent in self.inputs.items() if parent is not None}
        version = STAGES[self.stage].version + self.section.output_version()
        return StageCall(self.stage, version, section, parents, self.libraries or {}, self.any_versions)

    def check_here(self) -> None:
        """Raises WrongNode where this node's libraries or text files aren't those of the process that asks."""
        here, host = replace(self, libraries=None, texts=None), socket.gethostname()
        wanted, got = self.libraries or {}, here.libraries or {}
        if others := [name for name in {**wanted, **got} if wanted.get(name) != got.get(name)]:
            raise WrongNode(
                f"a node must run {self.stage} with the head's versions of libraries, {_listed(wanted, others)}, got "
                f"{_listed(got, others)} on {host}; install the same major and minor version there"
            )
        wanted, got = self.texts or {}, here.texts or {}
        for text in (text for text in {**wanted, **got} if wanted.get(text) != got.get(text)):
            found = "another file" if text in got and text in wanted else "none" if text in wanted else "one"
            raise WrongNode(
                f"the text {text} must be the same on every node as on the head, got {found} on {host}; put it on "
                "storage that all nodes share"
            )


def _listed(versions: Mapping[str, str], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {versions.get(name, 'not installed')}" for name in names)


def perform(request: Request, storage_uri: str) -> Artifact:
    """Run one stage here and commit its artifact. In a sweep this is what a Ray task runs.

    Only one that is to be alone runs alone (see energy/exclusive.py). Whoever waits for its turn holds no
    resource but the task's own; whoever has it waits for no other stage.

    An artifact that was there and was disturbed stays where it is, for the trial that made it; another is made beside
    it, under the key of the next attempt. Raises WrongNode as `check_here`.
    """
    request.check_here()
    check_storage(storage_uri, request.mark)
    store, stage = Store(storage_uri), STAGES[request.stage]
    if not stage.machine_bound:
        return _made(request, store, request.call(), store.compute)
    place: dict[str, Any] = _place(request)
    while True:
        call = request.call(place)
        artifact = _made(request, store, call, store.get_or_compute)
        disturbed = artifact.reused and stage.disturbed and function_named(stage.disturbed)(store.path(artifact))
        if not disturbed:
            return artifact
        log.info("%s %s was disturbed by other work: it is measured again", call.stage, call.key[:8])
        place = place | {"attempt": place.get("attempt", 0) + 1}


def check_storage(storage_uri: str, mark: str | None) -> None:
    """Raises WrongNode where this node doesn't see the storage that is marked so, before it works in vain."""
    if mark is None:
        return
    from greenprune.energy.exclusive import storage_mark

    where = f"{storage_uri}, which node {socket.gethostname()}"
    remedy = "use a shared file system or s3://…, with what that needs on every node"
    try:
        seen = storage_mark(storage_uri)
    except (GreenpruneError, OSError) as problem:
        raise WrongNode(f"sweep.storage must serve all nodes, got {where} can't use: {problem}; {remedy}") from None
    if seen != mark:
        raise WrongNode(f"sweep.storage must be a folder that all nodes share, got {where} doesn't see; {remedy}")


def _made(request: Request, store: Store, call: StageCall, compute: Callable[..., Artifact]) -> Artifact:
    """The artifact of a call by one of the store's ways, the work done when its turn has come."""
    from greenprune.energy.exclusive import gpus_here, hold_node

    compute = functools.partial(compute, resumes=STAGES[request.stage].resumes)
    made_with = {"versions": versions((*STAGES[request.stage].libraries, *request.section.libraries()))}
    if request.section.workers() > 1:  # its workers wait for their own turns, and aren't metered
        return compute(call, lambda out: made_with | _done(request, store, out))
    mine = hold_node(store.storage.uri, request.exclusive, gpus_here())
    return compute(call, lambda out: made_with | _metered(request, store, out), mine)


def _place(request: Request) -> dict[str, Any]:
    """What the time and energy of a stage depend on beside its configuration: where and how it runs."""
    import torch

    from greenprune.energy import machine_identity
    from greenprune.energy.exclusive import effective, gpus_here

    return {
        "machine": machine_identity()[0],
        "exclusive": effective(request.exclusive, bool(gpus_here())),
        "threads": torch.get_num_threads(),
        "gpus": torch.cuda.device_count(),
        "engine": getattr(request.section, "engine", FIRST_ENGINE),
    }


def _metered(request: Request, store: Store, out: Path) -> dict[str, Any]:
    """Do a stage's work; gives its energy for the manifest, as far as it was metered, and the stage's own facts."""
    import torch

    from greenprune.energy import metered_stage
    from greenprune.models.load import default_device

    resumed = STAGES[request.stage].resumes and any(out.iterdir())
    with metered_stage(request.stage, torch.device(default_device())) as cost:
        made = _done(request, store, out)
    if resumed or "begun_with" in made:  # a former attempt's part is lost with its process
        return made
    return {**made, **cost}


def perform_all(requests: Sequence[Request], storage_uri: str) -> list[Artifact]:
    """Several stages on one machine, one after the other."""
    return [perform(request, storage_uri) for request in requests]


def _done(request: Request, store: Store, out: Path) -> dict[str, Any]:
    """Do a stage's work on its inputs, which stay on this machine meanwhile; gives what it took of memory."""
    begins = STAGES[request.stage].begins
    begun = function_named(begins)(store, request.call(), out) if begins and not any(out.iterdir()) else {}
    with ExitStack() as used:
        inputs = {name: _locate(parent, store, used) for name, parent in request.inputs.items()}
        return begun | fitted(request, inputs, out)


def _locate(parent: Source | Artifact | None, store: Store, used: ExitStack) -> Path | None:
    """A parent's folder on this machine, where it stays as long as it is used; of a model, its checkpoint."""
    if parent is None:
        return None
    if isinstance(parent, Source):
        return assets.materialize(parent.config)
    folder = used.enter_context(store.using(parent))
    return folder / CHECKPOINT if STAGES[parent.stage].role == "model" else folder


def checkpoint_in(store: Store, made: Artifact) -> Path:
    """The checkpoint that a stage made which turns a model into another one."""
    return store.path(made) / CHECKPOINT


Execute = Callable[[Sequence[Request], str], list[Artifact]]


class Stages:
    """Runs a trial's stages: reuses an artifact, waits for another trial that makes it, or has it made."""

    def __init__(
        self,
        storage: Storage | str | Path,
        execute: Execute = perform_all,
        watch: Callable[[str], None] = lambda stage: None,
        any_versions: bool = False,
    ) -> None:
        self.store = Store(storage)
        self.execute = execute
        self.watch = watch
        self.any_versions = any_versions
        self.done: list[Artifact] = []

    def _mark(self) -> str | None:
        if self.execute is perform_all:
            return None
        from greenprune.energy.exclusive import storage_mark

        return storage_mark(self.store.storage.uri)

    def run(self, request: Request) -> Artifact:
        """The artifact of a stage that may run anywhere."""
        self.watch(request.stage)
        request = replace(request, any_versions=self.any_versions, mark=self._mark())
        call = request.call()
        artifact = self.store.find(call)  # most are there, and need no lease
        if artifact is None:
            with self.store.single_flight(call):
                artifact = self.store.find(call) or self.execute([request], self.store.storage.uri)[0]
        self.done.append(artifact)
        return artifact

    def run_bound(self, requests: Sequence[Request]) -> list[Artifact]:
        """The artifacts of machine-bound stages, all from one machine; that machine looks for them first."""
        self.watch(requests[0].stage)
        requests = [replace(request, any_versions=self.any_versions, mark=self._mark()) for request in requests]
        artifacts = self.execute(requests, self.store.storage.uri)
        self.done += artifacts
        return artifacts
