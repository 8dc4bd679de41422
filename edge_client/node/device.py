"""One device: its own clips, its own folder, and the three things that the cloud may ask of it.

It can summarise its clips as probability prototypes, count how many of its labelled test clips a student gets right,
and install a student. Labels are used for that count alone; the per-clip outcome stays in the device's folder
(``evaluations/``), where the owner, and a simulation, can read it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedstill.common.atomic_files import replace_text
from fedstill.datasets.audiovisual.capture_card import card_of, to_bytes
from fedstill.datasets.audiovisual.partition import query_and_test
from fedstill.datasets.audiovisual.store import ClipStore
from fedstill.datasets.files.faults import count_faults
from fedstill.edge_client.folder import COMPRESSORS_FOLDER, EXPORT_FOLDER, SHELF_FOLDER
from fedstill.edge_client.node.agent_data import own_clips
from fedstill.edge_client.node.bad_clips import bad_clips_of
from fedstill.edge_client.node.known_clips import (
    clips_of,
    known_from_now,
    make_known,
    name_of,
    read_known_clips,
)
from fedstill.edge_client.node.student_lock import require_change_allowed
from fedstill.edge_client.privacy.privacy_ledger import release_once
from fedstill.edge_client.privacy.privacy_policy import read_policy
from fedstill.edge_client.privacy.prototypes import DeviceError, summarise
from fedstill.edge_client.privacy.yearly_budget import require_left, spend_one
from fedstill.edge_client.students.canaries import canaries_of
from fedstill.edge_client.students.expected import Expected, keep_expected
from fedstill.edge_client.students.graph_files import keep_graphs
from fedstill.edge_client.students.level_files import keep_compressors
from fedstill.edge_client.students.level_numpy import received
from fedstill.edge_client.students.own_statistics import Wish, adapted, settle
from fedstill.edge_client.students.pointer import confirm
from fedstill.edge_client.students.runtime_api import DeviceRuntime, FeatureArrays, LoadStudent, OtherNetwork
from fedstill.edge_client.students.students import ModelStore, NotInStore, StoredModel
from fedstill.models.audiovisual.levels import Precision, compressed_payload_bytes
from fedstill.models.audiovisual.own_clips import most_clips
from fedstill.protos.messages import (
    UNKNOWN,
    EvaluationRequest,
    EvaluationResult,
    GraphsRequest,
    GraphsResult,
    InstallRequest,
    InstallResult,
    Job,
    PrototypeRequest,
    PrototypeUpload,
    Student,
    counted,
    require_same_classes,
)

Positions = npt.NDArray[np.int64]


class Device:
    """A device's own clips and files, and the answers to the cloud's requests.

    Args:
        directory: holds ``data/`` (a clip store) and, if the owner wants, ``privacy.json``; receives
            ``evaluations/``, ``students/``, ``canaries/`` and ``privacy.sqlite``.
        run: distinguishes runs of the cloud whose jobs have the same names; one private release per job and run.
        load: makes a runtime of a received student: ``load_torch``, or ``ExportFolder.load``, which needs no torch.
    """

    def __init__(self, directory: Path, load: LoadStudent, run: str = "") -> None:
        self.directory, self.run = directory, run
        self._load = load

    @cached_property
    def store(self) -> ClipStore:
        return own_clips(self.directory)

    @property
    def model_store(self) -> ModelStore:
        return ModelStore(self.directory / SHELF_FOLDER)

    def prototypes(self, request: PrototypeRequest) -> PrototypeUpload:
        """Features -> probabilities -> prototypes of the query clips (Algorithm 7, lines 2-4; thesis 5.3.4)."""
        policy = read_policy(self.directory)
        policy.require(request)
        require_change_allowed(self.directory)
        request, job = policy.strict(request), name_of(self.run, request.job)
        known, used = known_from_now(self.directory, job, self.store)
        told = f"{job} {known.digest}"
        require_left(self.directory, policy, told)
        query, _ = self.roles(request.job, used)
        profiles = None if self.store.profiles is None else self.store.profiles[query]

        def probabilities(asked: PrototypeRequest) -> npt.NDArray[np.float32]:
            return self._probabilities(asked, query)

        if request.kind == "dp":
            rows = release_once(self.directory, self.run, policy, request, probabilities, profiles)
        else:
            rows = summarise(probabilities(request), request, seed=seed_of(request.job))
            if request.card and profiles is not None:
                rows = replace(rows, card=to_bytes(card_of(profiles, fewest=request.min_size)))
        spend_one(self.directory, policy, told)
        known.write(self.directory)
        return PrototypeUpload(
            request.job, rows.probabilities, rows.counts, self.store.class_names, rows.confidence, rows.card
        )

    def _probabilities(self, request: PrototypeRequest, query: Positions) -> npt.NDArray[np.float32]:
        """(n, classes) probabilities of the query clips; of a private summary, each of its clip alone."""
        student = request.student
        if request.kind == "dp":
            student = replace(student, own_statistics=0.0)
        runtime, found = self._features(student, request.job, query)
        return runtime.probabilities(runtime.logits(found) / np.float32(request.temperature))

    def evaluate(self, request: EvaluationRequest) -> EvaluationResult:
        """Classify the labelled test clips with this student; the answer is two counts."""
        read_policy(self.directory).require_accuracy()
        require_change_allowed(self.directory)
        _, test = self.roles(request.job)
        labelled = test[self.store.labels[test] >= 0]
        if len(labelled) == 0:
            raise DeviceError("this device has no labelled clips, so accuracy cannot be measured")
        started = time.perf_counter()
        class_probabilities, size = self._decide(request, labelled)
        seconds = time.perf_counter() - started
        decided = class_probabilities.argmax(axis=1)
        right = decided == self.store.labels[labelled]
        self._remember(request, labelled, class_probabilities, decided, right)
        correct, bad = int(right.sum()), self._bad_clips()
        return EvaluationResult(request.job, correct, len(labelled), seconds, size, bad)

    def install(self, request: InstallRequest) -> InstallResult:
        """Install a student if it agrees with the teacher on the canary clips; otherwise the previous one stays."""
        model_store = self.model_store
        version = model_store.student(request.student).version
        require_change_allowed(self.directory, version)
        require_same_classes(self.store.class_names, request.student.class_names)
        clips = canaries_of(request, self.directory / "canaries")

        def agreement(student: StoredModel) -> float:
            """Of the student as it is: what is answered must say nothing of the device's clips."""
            runtime = self._runtime(student)
            found = runtime.features(clips.audio, clips.frames)
            return clips.agreement(runtime.probabilities(runtime.logits(found)))

        def settled(student: StoredModel) -> None:
            own = self._adapted(student, request.student, request.job) is not student
            settle(self.directory, version, own=own)

        keep_compressors(self.directory / COMPRESSORS_FOLDER, version, request.compressors.tobytes())
        known, job = read_known_clips(self.directory), name_of(self.run, request.job)
        if known is None or known.job != job:  # no summary was asked for
            make_known(self.directory, job, self.store)
        keep_expected(self.directory, self.directory / SHELF_FOLDER, version, _expected(request))
        found = model_store.install(version, agreement, request.minimum_agreement, settled)
        confirm(self.directory / SHELF_FOLDER)  # also a student that stays
        answer = found.installed, found.agreement, found.reason, found.current
        return InstallResult(request.job, *answer, self._bad_clips())

    def _bad_clips(self) -> tuple[str, ...]:
        """How many clips cannot be used, by kind, if the owner reports that."""
        if not read_policy(self.directory).bad_clips:
            return ()
        return counted(count_faults(bad_clips_of(self.directory)))

    def roles(self, job: Job, used: npt.NDArray[np.bool_] | None = None) -> tuple[Positions, Positions]:
        """(query, test) positions; the owner may have limited how many clips are summarised, not which are tested.

        Args:
            used: bool (clips,), those that may be summarised; None, or none of the query clips: all.
        """
        query, test = self._split(job)
        if used is not None and used[query].any():
            query = query[used[query]]
        limit = read_policy(self.directory).clips
        if limit is None or limit >= len(query):
            return query, test
        clip_ids = [self.store.info[position].clip_id for position in query]
        return np.sort(query[in_fixed_order(clip_ids)[:limit]]), test

    def _split(self, job: Job) -> tuple[Positions, Positions]:
        """(query, test) positions: the same clips when latency does not matter, disjoint halves when it does.

        Halves share no recording; an unlabelled clip of a tested recording is in neither.
        """
        if len(self.store.info) == 0:
            raise DeviceError("this device has no clips; record some or check its --data path")
        if job.scenario == "latency_insensitive":
            everything = np.arange(len(self.store.info), dtype=np.int64)
            return everything, everything
        labelled = np.flatnonzero(self.store.labels >= 0)
        recordings = np.array(self.store.recordings)
        query, test = query_and_test(self.store.labels[labelled], job.seed, recordings[labelled].tolist())
        tested = np.isin(recordings, recordings[labelled[test]])
        unlabelled = np.flatnonzero((self.store.labels < 0) & ~tested)
        return np.sort(np.concatenate([labelled[query], unlabelled])), labelled[test]

    def _features(
        self, student: Student, job: Job, positions: Positions
    ) -> tuple[DeviceRuntime, FeatureArrays]:
        require_same_classes(self.store.class_names, student.class_names)
        runtime = self._runtime(self._adapted(self.model_store.student(student), student, job))
        return runtime, runtime.features(self.store.audio[positions], self.store.frames[positions])

    def _adapted(self, stored: StoredModel, message: Student, job: Job) -> StoredModel:
        """The student as the message means it: as it is, or with batch norm statistics of the clips it is for. An owner
        who accepts no plain means lets nothing of the kind into an answer, so into no student that gives one."""
        if not message.own_statistics or not read_policy(self.directory).plain_means:
            return stored
        shapes = self.store.audio.shape[1:], self.store.frames.shape[1:]
        most = most_clips(*shapes, json.loads(stored.spec)["encoder"]["width"])
        positions = self._summarised(job, most)
        told = tuple(" ".join(clip) for clip in clips_of(self.store, positions))

        def clips() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
            return self.store.audio[positions], self.store.frames[positions]

        try:
            wish = Wish(message.own_statistics, message.least_share)
            return adapted(self.directory, stored, wish, told, clips, self._runtime)
        except OtherNetwork as error:
            raise NotInStore("graphs", stored.version) from error

    def _summarised(self, job: Job, most: int) -> Positions:
        """Of the query clips those that a student of this job is for, not too many of them."""
        known, used = read_known_clips(self.directory), None
        if known is not None and known.left and known.job == name_of(self.run, job):
            used = ~known.parts(self.store)[1]
        query = self.roles(job, used)[0]
        clip_ids = [self.store.info[position].clip_id for position in query]
        return np.sort(query[in_fixed_order(clip_ids)[:most]])

    def _runtime(self, student: StoredModel) -> DeviceRuntime:
        try:
            return self._load(student.state, student.spec, student.class_names, student.version)
        except OtherNetwork as error:
            raise NotInStore("graphs", student.version) from error

    def keep_graphs(self, request: GraphsRequest) -> GraphsResult:
        """Run students with these graphs from now on."""
        keep_graphs(self.directory / EXPORT_FOLDER, request.graphs)
        return GraphsResult(request.job)

    def _decide(
        self, request: EvaluationRequest, positions: Positions
    ) -> tuple[npt.NDArray[np.float32], int]:
        """(n, classes) probabilities of the path that the request describes, and bytes per clip on its wire."""
        runtime, found = self._features(request.student, request.job, positions)
        width = found.audio.shape[1]
        if not request.rung:
            size = compressed_payload_bytes(width, 1.0, Precision.FP32)
            return runtime.probabilities(runtime.logits(found)), size
        level = json.loads(request.rung)
        rate, precision = float(level["rate"]), Precision(level["precision"])
        if rate == 1:  # the cloud decides there with the student's own head
            answer = runtime.logits(FeatureArrays(*(received(part, precision) for part in found)))
        else:
            answer = runtime.level_logits(found, rate, precision, request.compressor)
        return runtime.probabilities(answer), compressed_payload_bytes(width, rate, precision)

    def _remember(
        self,
        request: EvaluationRequest,
        positions: Positions,
        class_probabilities: npt.NDArray[np.float32],
        decided: Positions,
        right: npt.NDArray[np.bool_],
    ) -> None:
        """Keep the per-clip outcome here; it never travels.

        ``decided`` are class names, ``margin`` the lead in probability over the second class, ``student`` the version
        that decided: what ``fedstill agent infer`` must answer for the same clips once this student is installed.
        """
        job, names = request.job, self.store.class_names
        ordered = np.sort(class_probabilities, axis=1)
        margin = ordered[:, -1] - (ordered[:, -2] if len(names) > 1 else 0)
        level = json.loads(request.rung) if request.rung else {}
        outcome = {
            "scenario": job.scenario,
            "arm": job.arm,
            "seed": job.seed,
            "student": request.student.version,
            "level": level,
            "clip_ids": [self.store.info[position].clip_id for position in positions],
            "decided": [names[label] for label in decided],
            "margin": [round(float(one), 6) for one in margin],
            "correct": "".join("1" if one else "0" for one in right),
        }
        name = ".".join(map(str, (job.scenario, job.arm, job.seed, *level.values())))
        file = self.directory / "evaluations" / f"{name}.json"
        replace_text(file, json.dumps(outcome))


def _expected(request: InstallRequest) -> Expected | None:
    return None if request.expected == UNKNOWN else Expected(request.expected, request.low, request.high)


def in_fixed_order(clip_ids: Sequence[str]) -> Positions:
    """A mixed order that no request can change: asking again for the same query clips shows no further ones."""
    digests = [sha256(clip_id.encode()).digest() for clip_id in clip_ids]
    return np.array(sorted(range(len(digests)), key=digests.__getitem__), dtype=np.int64)


def seed_of(job: Job) -> int:
    """A clustering seed that differs between seeds and outer rounds but not between engines."""
    return job.seed * 1009 + job.round
