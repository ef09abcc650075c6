"""What events hold: one node a kind, read from JSON once, and typed from there on.

A ledger may hold more than this program knows, which stays, and less: what came later has a default. What only the
loop writes has to be what it says; what anybody may append holds anything, and is read as far as it makes sense.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, model_serializer

from jaxnano.config.base import Node, finite
from research.contract.part import Proposal
from research.contract.trial import Trial
from research.ledger.placed import Placed, Topology

LONGEST = 1000  # characters of what a reviewer says
SHOWN = 80  # characters of a model's or a provider's name: anybody may append a call
MOST = 1e15  # of a call's number, so that sums stay finite
DECISIONS = ("approve", "veto", "hold")  # what a person may say of a recipe; the last word counts
WANTS = ("pause", "go on", "stop", "minutes", "workers", "retry")  # what a person may ask of a loop that runs

Said = Annotated[str, BeforeValidator(lambda value: str(value or "")[:LONGEST])]
Named = Annotated[str, BeforeValidator(lambda value: str(value)[:SHOWN])]


def _amount(value: Any) -> float:
    return float(min(max(0.0, value), MOST)) if finite(value) else 0.0


Amount = Annotated[float, BeforeValidator(_amount)]
Count = Annotated[int, BeforeValidator(lambda value: int(_amount(value)))]


class Body(Node):
    """What an event holds. A number that is not finite is written as null."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=True)

    @model_serializer
    def written(self) -> dict[str, Any]:
        """The fields that somebody has set: those are written, and no defaults."""
        return {name: value for name, value in self if name in self.model_fields_set}


class Proposed(Body):
    """A proposal and the recipe, as plain data, that it builds on the base."""

    proposal: Proposal
    recipe: dict[str, Any]


class Begun(Body):
    """A session's first event. contract: the track as plain data. inherited: an earlier session's champion. place:
    of its workers; older ledgers do not say. flat_priors: whether nothing that is promised of an idea counts.
    ideas: names of the catalogue's, by family, where its lane is asked."""

    track: str
    data_hash: str
    seed: int
    workers: int
    contract: dict[str, Any] | None = None
    track_hash: str = ""
    source: str = ""
    minutes: float = 0.0
    max_trials: int | None = None
    lanes: tuple[str, ...] = ()
    llm: dict[str, Any] | None = None
    executor: str = "local"
    accelerator: bool = False
    place: Placed | None = None
    require_review: bool = False
    flat_priors: bool = False
    ideas: dict[str, tuple[str, ...]] = {}
    bytes_per_token: float | None = None
    incumbent: str | None = None
    inherited: Proposed | None = None
    versions: dict[str, Any] = {}
    argv: tuple[str, ...] = ()
    pid: int = 0


class Imported(Body):
    """What another session of this track and data has found, as evidence for the search: of no seed of this one's, so
    in no pair, and no proof. features: of its recipes by id, against the same base. runs: recipe id, horizon, seed
    there, loss of the search split."""

    origin: str
    features: dict[str, dict[str, float | str]] = {}
    runs: tuple[tuple[str, float, int, float], ...] = ()


class Resumed(Body):
    """A later sitting of the loop."""

    workers: int | None = None
    executor: str = "local"
    pid: int = 0


class Refusal(Node):
    """One reason against a proposal."""

    path: str = ""
    value: object = None
    rule: str = ""


class Sketch(Node):
    """What is believed of a recipe rests on this: its features, what it compiles (so many programs), FLOPs and tokens
    of a step. Written once, so that readers of thousands need not build each."""

    features: dict[str, float | str]
    structure: str
    programs: int
    flops: float
    tokens: float


class Judgement(Body):
    """The gate's verdict. submission: the event it answers. notes: what an accepted proposal may not have meant.
    sketch: of an accepted recipe; older ledgers have none."""

    accepted: bool
    sketch: Sketch | None = None
    refusals: tuple[Refusal, ...] = ()
    ms: float = 0.0
    notes: tuple[str, ...] = ()
    submission: int | None = None


class Competitor(Node, allow_inf_nan=True):
    """A run that competed for the next place, and what it was worth."""

    trial: str
    name: str
    eig: float | None = None
    improvement: float | None = None
    cost_s: float | None = None


class Decided(Body):
    """Why a run is the next one. as_of: the event up to which the state was known. priced: the worker whose costs were
    taken. promised: it was owed to a proposal from outside."""

    purpose: str
    worker: int | None = None
    why: str = ""
    left_s: float | None = None
    as_of: int | None = None
    priced: int | None = None
    promised: bool = False
    eig: float | None = None
    improvement: float | None = None
    cost_s: float | None = None
    score: float | None = None
    winner: Competitor | None = None
    runners_up: tuple[Competitor, ...] = ()


class Started(Body):
    """A run begins: attempt 1, 2, ... at a trial. splits: tokens that each is evaluated on."""

    attempt: int
    worker: int
    recipe_id: str
    horizon: float
    seed: int
    purpose: str
    pid: int = 0
    splits: dict[str, int] = {}
    steps: int = 0

    @property
    def trial(self) -> Trial:
        """What is run."""
        return Trial(self.recipe_id, self.horizon, self.seed)


class Audit(Node):
    """What the watch of an earlier version predicted of a run that went on all the same: mean and standard deviation of
    its final loss."""

    predicted: tuple[float | None, float | None] | None = None


class Result(Body):
    """How a run ended. loss: by split, nats. curve: (progress, loss). predicted, audit: [mean, sd] of the final loss of
    a run that an earlier version ended as hopeless, or went on with all the same. machine, exit, lost: the machine's
    doing, a worker's exit status, a machine that is gone."""

    attempt: int
    outcome: str
    reason: str = ""
    loss: dict[str, float | None] = {}
    curve: tuple[tuple[float, float | None], ...] = ()
    predicted: tuple[float, float] | None = None
    audit: Audit | None = None
    steps: int | None = None
    device_s: float | None = None
    compile_s: float | None = None
    wall_s: float | None = None
    tokens_per_s: float | None = None
    fingerprint: dict[str, Any] = {}
    topology: Topology | None = None
    machine: bool = False
    exit: int | None = None
    lost: bool = False

    @property
    def points(self) -> list[tuple[float, float]]:
        """The curve where the loss was a number."""
        return [(progress, loss) for progress, loss in self.curve if loss is not None]

    @property
    def says_nothing(self) -> bool:
        """Whether the machine ended it (a worker that died, a full disk): that is no fact about the recipe."""
        return self.outcome == "interrupted" and (self.exit is not None or self.machine)


class Transferred(Result):
    """How a run of the transfer card ended: no trial, and nothing rests on it. setting: where the champion was carried
    over to, see contract/transfer.py. role: base, champion or the preset. trial: its folder below transfer/. recipe: as
    it is there. budget_s: of training, where that decided the steps."""

    setting: str
    role: str
    trial: str
    recipe: dict[str, Any]
    horizon: float
    seed: int
    budget_s: float | None = None


class Nominated(Body):
    """A candidate to be proven: number 1, 2, ...; what was expected of it."""

    number: int
    mean: float | None = None
    sd: float | None = None
    parts: tuple[str, ...] = ()


class Ablated(Body):
    """A look at which parts earn their place. rows: by part, what runs without it say. untested: why a part that stays
    was not shown to earn its place. trying: the recipe without `removing`. more: whether the rest is looked at again;
    None in a ledger of version 0.2. rule: how it was decided, by name; "" is an earlier version's way. believed: what
    the belief held each part for, mean and SD in nats, before anything was run for it. best: the best recipe so far,
    which nothing that goes may fall behind. seeds: of the runs, in order; those of `trying` come first."""

    recipe_id: str
    rows: tuple[dict[str, Any], ...] = ()
    kept: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    removing: tuple[str, ...] = ()
    trying: str | None = None
    untested: dict[str, str] = {}
    reduced_effect: float | None = None
    more: bool | None = None
    rule: str = ""
    believed: dict[str, tuple[float, float]] = {}
    best: str = ""
    seeds: tuple[int, ...] = ()


class Futile(Body):
    """No attempt is spent on a nominated candidate. recipe_id: what would have been sealed. p: that it gains more than
    epsilon, from seeds that did not pick it. power: of the test at `level`, which it would have had. seeds, gains: over
    the incumbent."""

    nomination: int
    recipe_id: str = ""
    why: str = ""
    p: float | None = None
    power: float | None = None
    level: float = 1.0
    seeds: tuple[int, ...] = ()
    gains: tuple[float, ...] = ()


class Sealed(Body):
    """Attempt k at a level, written before any fresh seed exists. n: seeds at most. rule: the test, by name; "" is that
    of version 0.2. split: on which it is tested, opened so many times before. registry: which gave the attempt its
    number; without one the session did."""

    attempt: int
    alpha: float
    n: int
    incumbent: str = ""
    best_single: str | None = None
    nomination: int | None = None
    rule: str = ""
    split: str = ""
    opened: int = 0
    registry: str = ""


class Verified(Body):
    """What the sealed test said. comparisons, losses (by seed): by role. official: of a target in steps or time."""

    passed: bool
    attempt: int = 0
    alpha: float = 0.0
    nomination: int | None = None
    seeds: tuple[int, ...] = ()
    comparisons: dict[str, dict[str, Any]] = {}
    losses: dict[str, dict[str, float | None]] = {}
    official: bool | None = None


class Crowned(Body):
    """A new champion. trial: the run whose checkpoint ships. heldout: its loss at the one opening of that split.
    sample: of its text; older ledgers have none."""

    trial: str = ""
    name: str = ""
    seed: int | None = None
    heldout: float | None = None
    sample: str = ""


class Ended(Body):
    """The loop stopped. shares: of the core-seconds."""

    reason: str = ""
    shares: dict[str, float] = {}


class Submission(Body):
    """A proposal from outside; what it holds is looked at when it is judged."""

    proposal: object = None


class Review(Body, extra="ignore"):
    """What a person says of a recipe: approve, veto, hold; anything else is nothing."""

    decision: Annotated[str, BeforeValidator(lambda value: value if value in DECISIONS else "")] = ""
    reviewer: Said = ""
    note: Said = ""


class Asked(Body, extra="ignore"):
    """What a person asks of the loop, while it runs: start nothing more until `go on`; end after this round; so many
    minutes more; so many of its workers. And of a later one too: `retry`, which runs what has failed once more: the
    event's subject, a recipe's runs or one; all without one. Anything else is nothing."""

    want: Annotated[str, BeforeValidator(lambda value: value if value in WANTS else "")] = ""
    value: Amount = 0.0
    by: Said = ""


class Call(Body):
    """A request to a language model: tokens as the provider counted them, cost in USD where a price is known.

    kept: the number under which exchanges.py has what was asked and answered; 0: nowhere.
    """

    outcome: Named = "None"
    provider: Named = "None"
    model: Named = "None"
    reason: Said = ""
    tokens_in: Count = 0
    tokens_out: Count = 0
    cost: Annotated[float | None, BeforeValidator(lambda value: _amount(value) if finite(value) else None)] = None
    wall_s: Amount = 0.0
    proposals: Count = 0
    accepted: Count = 0
    repair: Annotated[bool, BeforeValidator(bool)] = False
    kept: Count = 0


class Opening(Body):
    """The protected split was opened beside a verification, for a trial's checkpoint."""

    split: object = None
    trial: object = None


OPEN_KINDS: dict[str, type[Body]] = {
    "submission": Submission, "review": Review, "ask": Asked, "call": Call, "opening": Opening}
LOOP_KINDS: dict[str, type[Body]] = {
    "session": Begun, "resume": Resumed, "imported": Imported, "proposal": Proposed, "verdict": Judgement,
    "decision": Decided, "attempt": Started, "result": Result, "nominated": Nominated, "ablation": Ablated,
    "futile": Futile, "sealed": Sealed, "verification": Verified, "crowned": Crowned, "transfer": Transferred,
    "end": Ended}
KINDS = OPEN_KINDS | LOOP_KINDS  # any process may append the former, the holder of the lease alone the latter


def ablation_of_0_2(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Version 0.2 said `removed` of what it tried, before it knew."""
    early = body.get("trying") and "removing" not in body
    return {**body, "removing": body.get("removed", ()), "removed": ()} if early else body


OLDER = {"ablation": ablation_of_0_2}  # plain data of an earlier version -> that of this one, where a default won't do
