"""A gang: one worker of several processes, one a host, that train one model together (jax.distributed).

Its members are a NodeWorker on each host, in one placement group. It answers what a NodeWorker does, so that the loop
does not tell the two apart: what the first member says is what the gang says. A gang ends when one of its members is
lost or told to; another, with new members and a new meeting place, begins then.

Ray's SlicePlacementGroup is not used: it blocks while it looks for any slice of a shape, whereas the loop counts the
slices that there are and asks for each by its name. Not run on TPUs.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from research.execute import Message
from research.execute.node import Chunk, Lost, NodeWorker, Slot, model_of

SLICE, TOPOLOGY = "ray.io/tpu-slice-name", "ray.io/tpu-topology"  # Ray's labels of a TPU host
FAILED = ("failed", "interrupted")  # outcomes after which the others may wait for this process for ever
ALONE_S = 60.0  # how long the others may go on with a job that one member has failed at


def begin(slot: Slot, warm: tuple[str, ...]) -> tuple[Any, PlacementGroup]:
    """Ask for a gang, without waiting for it: its actor, on the loop's own node, and the room of its members."""
    where = {SLICE: slot.slice} if slot.slice else {}
    room = placement_group([slot.bundle] * slot.hosts, "STRICT_SPREAD", bundle_label_selector=[where] * slot.hosts)
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Gang).options(num_cpus=0, scheduling_strategy=here).remote(slot, room, warm), room


def gangs(nodes: Sequence[Mapping[str, Any]], kind: str, cpus: float = 1.0) -> Iterator[Slot]:
    """The gangs of a cluster: each TPU slice of which all hosts are there, or all hosts of a kind that are alike.

    Args: nodes: as ray.nodes() tells of them. kind: GPU, TPU or CPU, of which `cpus` make a virtual device.
    """
    groups = defaultdict(list)
    for node in nodes:
        if node["Resources"].get(kind):
            groups[node["Labels"].get(SLICE, node["NodeID"]) if kind == "TPU" else ""].append(node)
    yield from (_slot(hosts, kind, cpus) for hosts in groups.values() if kind != "TPU" or _whole(hosts))


def _whole(hosts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a slice's chips are all there."""
    topology = hosts[0]["Labels"].get(TOPOLOGY)
    return not topology or math.prod(map(int, topology.split("x"))) == sum(host["Resources"]["TPU"] for host in hosts)


def _slot(hosts: Sequence[Mapping[str, Any]], kind: str, cpus: float) -> Slot:
    """Of the hosts that are like most of them."""
    ((model, amount), count), = Counter(
        (model_of(host["Resources"]), host["Resources"][kind]) for host in hosts).most_common(1)
    return Slot(kind, amount, int(min(host["Resources"].get("memory", 0.0) for host in hosts)), model,
                int(amount / cpus) if kind == "CPU" else int(amount), count, hosts[0]["Labels"].get(SLICE, ""))


class Gang:
    """What stands for the members. An actor, whose methods are called from the loop and run on one thread."""

    def __init__(self, slot: Slot, room: PlacementGroup, warm: tuple[str, ...]) -> None:
        """Args: room: of the members, one a bundle. warm: modules that they import first."""
        self._slot, self._room, self._warm = slot, room, warm
        self._members: list[Any] = []
        self._asked: list[tuple[Any, ...]] = []  # before there was anyone to ask
        self._answers: dict[asyncio.Future[Any], int] = {}  # what is awaited, and of whom
        self._said: dict[int, Message] = {}  # that it is ready, or that its job has ended, before all have said so
        self._outgoing: deque[Message | Chunk] = deque()
        self._ending = False

    async def start(self) -> tuple[str, str]:
        """Gather the members when the cluster has room; returns their nodes' names, and the hash of their code.

        Raises: Lost if one of them went meanwhile.
        """
        await self._room.ready()
        for index in range(self._slot.hosts):
            place = PlacementGroupSchedulingStrategy(self._room, index)
            options = {"scheduling_strategy": place, **self._slot.options}
            self._members.append(ray.remote(NodeWorker).options(**options).remote(self._slot, self._warm))
        met = await self._all("meeting")
        order = sorted(range(self._slot.hosts), key=lambda index: met[index][0])
        self._members = [self._members[index] for index in order]
        meeting, hosts = met[order[0]][1], str(self._slot.hosts)
        told = await self._all("start", lambda rank: ((meeting, hosts, str(rank)),))
        for rank in range(self._slot.hosts):
            self._listen(rank)
        for asked in self._asked:
            await self.ask(*asked)
        (host, code), *others = told
        return next((other for other in others if other[1] != code), (" + ".join(name for name, _ in told), code))

    async def ask(self, number: int, what: str, *args: Any) -> None:
        """Have all members do what the loop asks, see NodeWorker.ask."""
        self._ending |= what == "kill"
        if not self._answers:
            self._asked.append((number, what, *args))
            return
        for member in self._members:
            member.ask.remote(number, what, *args)

    async def receive(self) -> Message | Chunk:
        """The next thing to tell the loop, when there is one; asked once `start` has answered.

        Raises: Lost if the gang is no more.
        """
        while not self._outgoing:
            failed = [m.body["reason"] for m in self._said.values() if m.body.get("outcome") in FAILED]
            done, _ = await asyncio.wait(self._answers, timeout=ALONE_S if failed else None,
                                         return_when=asyncio.FIRST_COMPLETED)
            if not done:
                self._end(f"one process failed alone: {failed[0]}")
            for answer in done:
                rank = self._answers.pop(answer)
                try:
                    self._take(rank, answer.result())
                except RayTaskError as error:
                    raise error.cause from error
                except RayError as error:
                    self._end(f"process {rank} of {self._slot.hosts}: {error}")
                self._listen(rank)
        return self._outgoing.popleft()

    async def close(self) -> None:
        """End the members."""
        await asyncio.gather(*(member.close.remote() for member in self._members), return_exceptions=True)

    def _listen(self, rank: int) -> None:
        self._answers[asyncio.ensure_future(_answer(self._members[rank].receive.remote()))] = rank

    async def _all(self, method: str, args: Callable[[int], tuple[Any, ...]] = lambda rank: ()) -> list[Any]:
        """What a method of each member returns, in their order. Raises: Lost if one is gone; whatever it raises."""
        try:
            return await asyncio.gather(*(_answer(getattr(member, method).remote(*args(rank)))
                                          for rank, member in enumerate(self._members)))
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            self._end(f"before all were there: {error}")

    def _take(self, rank: int, item: Message | Chunk) -> None:
        """Pass on what the first member says; that a worker is ready or a job has ended, once all have said so."""
        match item:
            case Message(kind="died"):
                self._end(f"process {rank} of {self._slot.hosts}: {item.body['reason']}")
            case Message(kind="ready" | "result"):
                self._said[rank] = item
                if len(self._said) == self._slot.hosts:
                    self._outgoing.append(self._said[0])
                    self._said = {}
            case _ if rank == 0:
                self._outgoing.append(item)

    def _end(self, reason: str) -> NoReturn:
        raise Lost(" ".join(reason.split())[:300], self._ending)


async def _answer(reference: Any) -> Any:
    return await reference
