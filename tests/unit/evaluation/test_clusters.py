"""Speakers and recordings, not clips, carry the intervals and the tests: golden values and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fedstill.evaluation.clusters import RESAMPLES, bootstrap_interval, by_recording, unit_of
from fedstill.evaluation.paired_tests import holm, sign_flip
from fedstill.evaluation.results import AccuracyRow, ClipRow
from fedstill.evaluation.statistics import arm_accuracy, compare, distinct_recordings, pooled_accuracy, wilson

SCENARIO = "latency_insensitive"


def interval(sums, counts=None, speakers=None):
    sums = np.array(sums)
    counts = np.ones_like(sums) if counts is None else np.array(counts)
    return bootstrap_interval(sums, counts, np.random.default_rng(0), speakers)


def rows_of(ours, theirs, speakers, faces=1, client=0, known=True):
    """Rows of one client; ours and theirs are (seeds, recordings) of 0 and 1, alike for all faces of a recording."""
    count = len(speakers)
    clip_ids = tuple(f"sound{index}_{face}" for index in range(count) for face in range(faces))
    groups = tuple(f"sound{index}" for index in range(count) for _ in range(faces))
    people = tuple(f"speaker{speaker}" for speaker in speakers for _ in range(faces))

    def bits(hits):
        return "".join(str(hit) * faces for hit in hits)

    return tuple(
        ClipRow(
            SCENARIO,
            client,
            seed,
            clip_ids,
            {"fedstill": bits(a), "all_distill": bits(b)},
            groups if known else (),
            people if known else (),
        )
        for seed, (a, b) in enumerate(zip(np.asarray(ours), np.asarray(theirs), strict=True))
    )


def compared(clips, **keywords):
    return compare(clips, "fedstill", "all_distill", scenario=SCENARIO, **keywords)


def accuracy_rows(clips, arm="fedstill"):
    return [
        AccuracyRow(row.scenario, arm, row.client, row.seed, row.correct[arm].count("1"), len(row.clip_ids))
        for row in clips
    ]


class TestBootstrap:
    def test_one_recording_per_speaker_is_resampling_speakers(self):
        sums = np.random.default_rng(1).integers(-3, 4, 40)
        counts = np.full(40, 3)
        assert interval(sums, counts, np.random.default_rng(2).permutation(40)) == interval(sums, counts)

    def test_recordings_that_are_alike_within_a_speaker_are_resampling_speakers(self):
        """Twenty equal recordings of a speaker say no more than one."""
        effects = np.array([3, 1, 0, 2, -1, 1, 4])
        many = interval(np.repeat(effects, 20), None, np.repeat(np.arange(7), 20))
        assert many == pytest.approx(interval(effects))
        low, high = interval(np.repeat(effects, 20))  # the same numbers, as if of 140 speakers
        assert high - low < 0.4 * (many[1] - many[0])

    def test_two_speakers_who_differ_leave_everything_open(self):
        """Their mean is 0, 50 or 100 with chances 1/4, 1/2, 1/4, however many recordings there are."""
        assert interval([0] * 50 + [1] * 50, None, np.repeat([0, 1], 50)) == (0, 100)

    def test_equals_brute_force_on_a_tiny_case(self):
        """All 27 x 64 equally likely ways to draw 3 speakers, and 2 recordings of each."""
        values = np.array([[0, 7], [10, 24], [3, 41]])
        means = np.sort(
            [
                np.mean([values[who, what] for who, pair in zip(whom, picks, strict=True) for what in pair])
                for whom in itertools.product(range(3), repeat=3)
                for picks in itertools.product(itertools.product(range(2), repeat=2), repeat=3)
            ]
        )
        assert len(means) == 27 * 64
        low, high = interval(values.ravel(), None, np.repeat(np.arange(3), 2))
        # Between the exact quantiles a sampling error away; RESAMPLES draws are far nearer than that.
        slack = 4 * np.sqrt(0.025 * 0.975 / RESAMPLES)
        for found, level in ((low, 0.025), (high, 0.975)):
            exact = 100 * np.quantile(means, [level - slack, level + slack])
            assert exact[0] <= found <= exact[1]

    def test_recordings_of_different_length_count_by_their_clips(self):
        """One recording of nine wrong clips, one of a right clip: the mean of both is 10 %, not 50 %."""
        low, high = interval([0, 1] * 300, [9, 1] * 300)
        assert low < 10 < high < 15

    def test_unknown_speakers_are_as_before(self):
        draw = np.random.default_rng(3)
        changes, counts = draw.integers(-5, 6, 300), np.full(300, 5)
        kinds, copies = np.unique(np.stack([changes, counts], axis=1), axis=0, return_counts=True)
        drawn = np.random.default_rng(0).multinomial(300, copies / 300, size=RESAMPLES)
        before = np.quantile(100 * (drawn @ kinds[:, 0]) / (drawn @ kinds[:, 1]), [0.025, 0.975])
        assert interval(changes, counts) == pytest.approx(tuple(before))


class TestRecordings:
    def test_sums_over_faces_and_seeds(self):
        clips = rows_of([[1, 0, 1], [1, 0, 0]], [[0, 0, 0]] * 2, speakers=[4, 4, 9], faces=2)
        found = by_recording([(row, [int(bit) for bit in row.correct["fedstill"]]) for row in clips])
        assert found.sums.tolist() == [4, 0, 2]
        assert found.counts.tolist() == [4, 4, 4]
        assert found.speakers.tolist() == [0, 0, 1]
        assert found.speaker_sums.tolist() == [4, 2]

    def test_one_unknown_speaker_leaves_all_of_them_out(self):
        (row,) = rows_of([[1, 0]], [[0, 0]], speakers=[0, 0])
        half = ClipRow(SCENARIO, 0, 0, row.clip_ids, row.correct, row.groups, ("speaker0", ""))
        found = by_recording([(half, [1, 0])])
        assert not found.known
        assert found.speakers.tolist() == [0, 1]
        assert [unit_of([row]), unit_of([half]), unit_of([])] == ["speaker", "recording", "clip"]

    def test_distinct_recordings_are_counted(self):
        clips = rows_of([[1, 0, 1]], [[0, 0, 0]], speakers=[0, 0, 1], faces=2)
        assert distinct_recordings(clips, SCENARIO) == {0: 3}
        assert distinct_recordings(rows_of([[1, 0]], [[0, 0]], [0, 1], known=False), SCENARIO) == {0: 2}


class TestCompare:
    def test_a_second_face_for_every_recording_changes_nothing(self):
        """528 clips of 264 recordings are not 528 trials; counted as clips, the interval shrinks by 1 / sqrt(2)."""
        draw = np.random.default_rng(6)
        hits = draw.integers(0, 2, size=(2, 3, 120))
        speakers = np.repeat(np.arange(12), 10)
        one, two = (rows_of(*hits, speakers, faces) for faces in (1, 2))
        assert compared(one) == compared(two)
        assert arm_accuracy(accuracy_rows(one), one) == arm_accuracy(accuracy_rows(two), two)

        one, two = (compared(rows_of(*hits, speakers, faces, known=False)) for faces in (1, 2))
        assert (two.high - two.low) / (one.high - one.low) == pytest.approx(0.5**0.5, rel=0.05)

    def test_a_speaker_changes_sign_as_a_whole(self):
        ours = np.zeros((1, 120), int)
        ours[0, :10] = 1  # one of twelve speakers gains, with all recordings
        clips = rows_of(ours, np.zeros((1, 120), int), np.repeat(np.arange(12), 10))
        assert compared(clips).label == "n.s."
        assert compared(clips).p_flips == 1.0
        assert compared(rows_of(ours, np.zeros((1, 120), int), range(120))).p_flips == pytest.approx(
            2 / 2**10
        )

    @pytest.mark.parametrize(
        ("speakers", "label"),
        [
            (1, "n.s.: 1 speaker cannot show it"),
            (5, "n.s.: 5 speakers cannot show it"),
            (6, "p = 0.031"),
            (11, "p < 0.001"),
        ],
    )
    def test_few_speakers_cannot_show_a_difference(self, speakers, label):
        count = 20 * speakers
        clips = rows_of(np.ones((3, count), int), np.zeros((3, count), int), np.arange(count) % speakers)
        outcome = compared(clips)
        assert outcome.label == label
        assert outcome.short_label in ("n.s.", label)
        assert outcome.p_flips == pytest.approx(2 / 2**speakers)

    def test_a_speaker_at_two_clients_is_one_speaker(self):
        hits = [np.ones((1, 8), int), np.zeros((1, 8), int)]
        clips = rows_of(*hits, range(8)) + rows_of(*hits, range(8), client=1)
        assert compared(clips).p_flips == compared(clips, client=1).p_flips == pytest.approx(2 / 2**8)

    def test_the_same_rows_give_the_same_outcome(self):
        hits = np.random.default_rng(8).integers(0, 2, size=(2, 3, 60))
        clips = rows_of(*hits, np.arange(60) % 7)
        assert compared(clips) == compared(clips[::-1])


class TestArmAccuracy:
    def test_speakers_who_differ_widen_the_interval(self):
        ours = np.repeat([1, 1, 1, 0, 0, 1, 1, 0], 25)[None]
        clips = rows_of(ours, ours, np.repeat(np.arange(8), 25))
        found = arm_accuracy(accuracy_rows(clips), clips)
        assert found.fraction == 0.625
        assert found.recordings == 200
        assert (found.low, found.high) == (
            pytest.approx(interval(ours[0, ::25])[0] / 100),
            pytest.approx(interval(ours[0, ::25])[1] / 100),
        )
        low, high = wilson(125, 200)
        assert found.high - found.low > 3 * (high - low)

    def test_without_speakers_or_clips_it_is_the_pooled_one(self):
        clips = rows_of([[1, 0, 1, 1]], [[0, 0, 0, 0]], [0, 1, 2, 3], known=False)
        rows = accuracy_rows(clips)
        assert arm_accuracy(rows, clips) == arm_accuracy(rows, ()) == pooled_accuracy(rows)
        with pytest.raises(ValueError, match="no rows"):
            arm_accuracy([], clips)

    def test_no_mistake_at_all_is_no_certainty(self):
        """No resample can differ, so Wilson's interval over recordings stands in."""
        clips = rows_of([[1] * 20], [[0] * 20], np.arange(20) % 7, faces=2)
        found = arm_accuracy(accuracy_rows(clips), clips)
        assert (found.low, found.high) == wilson(20, 20)


class TestHolm:
    def test_golden_values(self):
        """0.005 x 4, 0.01 x 3, 0.03 x 2, and 0.04 x 1 raised to the one before."""
        assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
        assert holm([0.5, 0.9]) == (1.0, 1.0)
        assert holm([0.02]) == (0.02,)
        assert holm([]) == ()

    def test_false_alarms_of_a_family_are_rare(self):
        draw = np.random.default_rng(0)
        families = [
            min(holm([sign_flip(draw.choice([-1, 1, 2, -2], 9), draw) for _ in range(4)])) <= 0.05
            for _ in range(300)
        ]
        assert np.mean(families) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)
