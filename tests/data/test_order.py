"""The sample order: a pure function, each sample once an epoch, the same under any world size and
from any step."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from lit_llm.data.order import RankSampler, SampleOrder, StepSampler, permutation

chunks = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(sum)


@given(chunks, st.integers(0, 3), st.integers(1, 5))
def test_every_epoch_is_a_permutation_and_pure(sizes: list[int], seed: int, window: int) -> None:
    order, total = SampleOrder(sizes, seed, window), sum(sizes)
    positions = range(3 * total)
    drawn = [order(p) for p in positions]
    for epoch in range(3):
        assert sorted(drawn[epoch * total : (epoch + 1) * total]) == list(range(total))
    again = SampleOrder(sizes, seed, window)
    assert [again(p) for p in reversed(positions)] == drawn[::-1]  # asked in any order


@given(chunks, st.integers(1, 4))
def test_a_chunk_is_used_up_within_its_window(sizes: list[int], window: int) -> None:
    order = SampleOrder(sizes, seed=1, window=window)
    owner = [chunk for chunk, size in enumerate(sizes) for _ in range(size)]
    drawn = [owner[order(p)] for p in range(sum(sizes))]
    positions = {c: [i for i, d in enumerate(drawn) if d == c] for c in set(drawn)}
    # Between a chunk's first and last use, no more than `window` chunks are open
    for spots in positions.values():
        assert len(set(drawn[spots[0] : spots[-1] + 1])) <= window


def test_seeds_and_epochs_differ() -> None:
    order = SampleOrder([50], 0)
    assert [order(p) for p in range(50)] != [SampleOrder([50], 1)(p) for p in range(50)]
    assert [order(p) for p in range(50)] != [order(p) for p in range(50, 100)]


def test_the_permutation_is_the_one_runs_were_started_with() -> None:
    assert permutation(8, 42, 0).tolist() == [4, 1, 3, 6, 0, 7, 2, 5]


@given(
    chunks, st.integers(1, 3), st.sampled_from([(1, 4), (2, 2), (4, 1)]), st.integers(1, 3),
    st.integers(1, 6), st.data(),
)  # fmt: skip
@settings(deadline=None)
def test_steps_do_not_depend_on_ranks_accumulation_or_resume(
    sizes: list[int],
    micro: int,
    split: tuple[int, int],
    accumulation: int,
    steps: int,
    data: st.DataObject,
) -> None:
    world, micro_scale = split
    start = data.draw(st.integers(0, steps - 1))

    def by_step(world_size: int, micro_batch: int, accumulate: int, first: int) -> list[list[int]]:
        taken: list[list[int]] = [[] for _ in range(first, steps)]
        for rank in range(world_size):
            sampler = StepSampler(
                SampleOrder(sizes, 0), steps=steps, accumulation=accumulate,
                micro_batch_size=micro_batch, rank=rank, world_size=world_size, step=lambda: first,
            )  # fmt: skip
            ids = list(sampler)
            # The whole run's, so that a resume is on time
            assert len(sampler) == steps * accumulate * micro_batch
            per_step = accumulate * micro_batch
            for i in range(len(taken)):
                taken[i] += ids[i * per_step : (i + 1) * per_step]
        return [sorted(step) for step in taken]

    reference = by_step(1, 4 * micro * accumulation, 1, 0)
    assert by_step(world, micro * micro_scale, accumulation, start) == reference[start:]


@given(st.integers(0, 40), st.integers(1, 5))
def test_ranks_share_evaluation_without_repeats(samples: int, world: int) -> None:
    shares = [list(RankSampler(samples, rank, world)) for rank in range(world)]
    assert sorted(i for share in shares for i in share) == list(range(samples))
