"""How do trainings grow with a fleet, and what does a device lose by sharing its student? 10,000 simulated devices.

    python benchmarks/students/cohorts.py --out runs/cohorts

The devices (``cohorts_fleet.py``) come one after the other. Each joins the cohort whose founder's card is nearest, if
it is near enough, or founds one, by the code of the product. Cohorts render their worlds for real. The plans of each
cohort's first members are worked out in full: which world is believed, which classes are there, which candidates are
trained. Every candidate counts as two trainings, one to check it and one for the devices, though only chosen ones are
trained twice; later members of a cohort are taken to need none that these did not.

What sharing costs is measured on a random sample of all devices, recorded at their very severity. Each gets a student
of its own and one of its cohort, by the code of the product, the promise that must be kept included. The difference of
accuracies has a bootstrap interval over devices. Prototypes are not asked for, in neither.

The folder keeps what was made, so that an interrupted simulation goes on; delete it after a change of the code.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track
from scipy.special import softmax

from fedstill.cloud_server.distillation.candidates import GENERIC_TRAINING, class_weights, keeps_promise
from fedstill.cloud_server.distillation.compute import use_threads
from fedstill.cloud_server.distillation.settings import CohortSettings
from fedstill.cloud_server.federation.cohorts import Cohort, Cohorts
from fedstill.cloud_server.federation.personal_student import PersonalStudents, generic_after_all
from fedstill.cloud_server.federation.seed_state import SeedCloud
from fedstill.cloud_server.journal.event_log import Metrics
from fedstill.cloud_server.journal.job_key import JobKey
from fedstill.common.atomic_files import replace_text
from fedstill.datasets.audiovisual.capture.card_distance import space_of
from fedstill.datasets.audiovisual.store import ClipStore, build_store
from fedstill.models.audiovisual.confidence import confidence_histogram, mean_confidence
from fedstill.protos.messages import PrototypeUpload
from fedstill.simulation.config import Experiment, load_experiment
from fedstill.simulation.launcher import make_plan
from fedstill.simulation.robustness_devices import HeldSource
from fedstill.simulation.sources import open_source, split_positions

sys.path.insert(0, str(Path(__file__).parent))
from cohorts_fleet import Device, Fleet

SETTINGS = ("dataset.public_per_class=60", "dataset.private_per_class=36", "compute.precision=fp32",
            "compute.workers=1")  # fmt: skip
TINY = ("dataset.public_per_class=18", "dataset.private_per_class=6", "audio.seconds=0.6", "audio.mel_bins=32",
        "frames.size=24", "teacher.encoder.width=4", "student.encoder.width=2", "teacher.epochs=1",
        "student.epochs=1", "distillation.outer_epochs=1", "distillation.inner_epochs=1", "capture.blind=1",
        "fedstill.outer_epochs=1", "fedstill.inner_epochs=1", "capture.versions=1")  # fmt: skip
DEVICES, SAMPLE, PLANNED = 10_000, 16, 12
DRAWS = 10_000
MOST_TRAININGS, MOST_LOSS = 200, 1.0


@dataclass(frozen=True)
class Outcome:
    """One device of the sample: accuracies in percent, and which students it got."""

    device: int
    alone: float
    shared: float
    generic: float
    chosen_alone: str
    chosen_shared: str


@dataclass
class Simulation:
    """A cloud, its fleet and its cohorts."""

    cloud: SeedCloud
    fleet: Fleet
    cohorts: Cohorts

    def founded(self, count: int) -> dict[str, list[Device]]:
        """The members of each cohort, in the order of their coming; cohorts in the order of their founding."""
        members: dict[str, list[Device]] = defaultdict(list)
        for device in track(self.fleet.devices(count), "devices", count, console=Console(stderr=True)):
            upload = self.fleet.upload(device)
            members[self.cohort(device, upload).name].append(device)
        return members

    def cohort(self, device: Device, upload: PrototypeUpload) -> Cohort:
        found = self.cohorts.of(key_of(device), upload.card, int(upload.counts.sum()))
        assert found is not None  # every device has a card
        return found

    def needed(self, members: dict[str, list[Device]], planned: int) -> Iterator[tuple[int, str]]:
        """(device, training) of every training that a device is the first of its cohort to need."""
        for cohort, devices in track(members.items(), "plans", console=Console(stderr=True)):
            seen: set[str] = set()
            for device in devices[:planned]:
                upload = self.fleet.upload(device)
                students = PersonalStudents(
                    key_of(device), self.cloud, self.cloud.plan, upload, cohort=self.cohort(device, upload)
                )
                for candidate in students.offered(prototypes=False):
                    name = f"{cohort} {students.name_of(candidate.training)}"
                    if candidate.training != GENERIC_TRAINING and name not in seen:
                        seen.add(name)
                        yield device.number, name

    def outcome(self, device: Device) -> Outcome:
        """A device with a student of its own, and with one of its cohort."""
        store, upload = self.fleet.sampled(device)
        cohort = self.cohort(device, self.fleet.upload(device))
        alone, chosen_alone = self._accuracy(device, store, upload, None)
        shared, chosen_shared = self._accuracy(device, store, upload, cohort)
        generic = self._right(device, store, self.fleet.answers(self.fleet.generic, store))
        return Outcome(device.number, alone, shared, generic, chosen_alone, chosen_shared)

    def _accuracy(
        self, device: Device, store: ClipStore, upload: PrototypeUpload, cohort: Cohort | None
    ) -> tuple[float, str]:
        key, plan = key_of(device), self.cloud.plan
        plan = replace(plan, capture=replace(plan.capture, own_statistics=False))  # they are not played here
        found = PersonalStudents(key, self.cloud, plan, upload, cohort=cohort).make()
        logits, chosen = self.fleet.answers(found.net, store), found.choice.chosen
        if found.promised is not None:
            before, after = (
                self._sureness(device, store, one)
                for one in (self.fleet.answers(self.fleet.generic, store), logits)
            )
            promised = found.promised.personal - found.promised.generic
            left = (1 - before) / max(1 - found.promised.generic, 1e-12)
            if not keeps_promise(promised, after - before, left):
                found = generic_after_all(self.cloud, found.choice, "not as sure as promised")
                logits, chosen = self.fleet.answers(found.net, store), f"{found.choice.chosen}, doubted"
        return self._right(device, store, logits + found.bias), chosen

    def _right(self, device: Device, store: ClipStore, logits: npt.NDArray[np.float32]) -> float:
        right = (logits.argmax(axis=1) == store.labels).astype(np.float64)
        return 100 * float(class_weights(store.labels, device.shares) @ right)

    def _sureness(self, device: Device, store: ClipStore, logits: npt.NDArray[np.float32]) -> float:
        places = self.fleet.places(device)
        probabilities = softmax(logits[places] / self.cloud.class_mixes.temperature, axis=1)
        return mean_confidence(confidence_histogram(probabilities))


def key_of(device: Device) -> JobKey:
    """The job of a device."""
    return JobKey("latency_sensitive", "fedstill", device.number, 0)


def open_simulation(work: Path, settings: Sequence[str], distance: float) -> Simulation:
    """Train what all devices share, or read what an earlier run trained."""
    experiment: Experiment = load_experiment("quickstart", settings)
    source = open_source(experiment)
    public, private = split_positions(source)
    build_store(
        source, public.tolist(), experiment.audio, experiment.frames, work / "public", keep_sound=True
    )
    cloud = SeedCloud(make_plan(experiment, source, (private,), work), 0, Metrics(work))
    (work / "fleet").mkdir(exist_ok=True)
    fleet = Fleet(cloud, experiment, HeldSource(source), private, work / "fleet")
    return Simulation(
        cloud,
        fleet,
        Cohorts(work / f"cohorts-{distance:g}", CohortSettings(distance), space_of(cloud.public)),
    )


def interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Of the mean, 95 %, by bootstrap over devices."""
    rng = np.random.default_rng(0)
    means = rng.choice(values, (DRAWS, len(values))).mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate and print."""
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("runs/cohorts"), help="folder that keeps all that was made"
    )
    parser.add_argument("--distance", type=float, default=2.5, help="as cohorts.distance")
    parser.add_argument("--devices", type=int, default=DEVICES)
    parser.add_argument("--sample", type=int, default=SAMPLE, help="devices whose students are trained")
    parser.add_argument(
        "--cards-only", action="store_true", help="count cohorts; nothing is rendered or trained"
    )
    parser.add_argument("--quick", action="store_true", help="does it still work? the figures mean nothing")
    options = parser.parse_args(arguments)
    if options.quick:
        options.devices, options.sample = 3, 1
    use_threads(1)
    console = Console(soft_wrap=True, highlight=False)
    simulation = open_simulation(options.out, TINY if options.quick else SETTINGS, options.distance)
    members = simulation.founded(options.devices)
    first = [devices[0].number for devices in members.values()]
    counts = [10**power for power in range(1, 8) if 10**power < options.devices] + [options.devices]
    for count in counts:
        console.print(f"{count:6} devices: {sum(one < count for one in first):4} cohorts")
    if options.cards_only:
        return
    needed = [device for device, _ in simulation.needed(members, PLANNED)]
    for count in counts:
        console.print(f"{count:6} devices: {2 * sum(one < count for one in needed):4} trainings")
    kept = options.out / f"cohorts-{options.distance:g}"
    report(sampled(simulation, options.devices, options.sample, kept), 2 * len(needed), console)


def sampled(simulation: Simulation, devices: int, sample: int, folder: Path) -> list[Outcome]:
    """The outcomes of the sample, each kept when it is known."""
    chosen = np.random.default_rng(4).choice(devices, sample, replace=False)
    everybody = list(simulation.fleet.devices(devices))
    outcomes = []
    for number in track(chosen.tolist(), "sample", console=Console(stderr=True)):
        path = folder / f"outcome-{number}.json"
        if not path.exists():
            replace_text(path, json.dumps(asdict(simulation.outcome(everybody[number]))))
        outcomes.append(Outcome(**json.loads(path.read_text())))
    return outcomes


def report(outcomes: Sequence[Outcome], trainings: int, console: Console) -> None:
    """Both aims."""
    losses = np.array([one.alone - one.shared for one in outcomes])
    low, high = interval(losses)
    chosen = Counter((one.chosen_alone, one.chosen_shared) for one in outcomes)
    for (alone, shared), count in chosen.most_common():
        console.print(f"  {count:3} x alone: {alone}; in a cohort: {shared}")
    means = {
        name: np.mean([getattr(one, name) for one in outcomes]) for name in ("generic", "alone", "shared")
    }
    console.print(
        f"{len(outcomes)} devices: generic {means['generic']:.1f} %, alone {means['alone']:.1f} %, "
        f"in a cohort {means['shared']:.1f} %"
    )
    met = "met" if losses.mean() <= MOST_LOSS else "missed"
    console.print(
        f"mean loss {losses.mean():+.2f} points [{low:+.2f}, {high:+.2f}], aim <= {MOST_LOSS:g}: {met}"
    )
    met = "met" if trainings <= MOST_TRAININGS else "missed"
    console.print(f"trainings {trainings}, aim <= {MOST_TRAININGS}: {met}")


if __name__ == "__main__":
    main()
