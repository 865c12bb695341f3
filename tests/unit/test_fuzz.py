"""Every parser of what another program wrote stands a bounded number of seeded mutations of good input."""

from __future__ import annotations

import random

import pytest

from tests.fuzz import targets, targets_apt, targets_spine, targets_system

ROUNDS = 3000
TOKENS = [b"\0", b"\n", b"\n\n", b" ", b":", b"=", b"%", b"%ff", b"-", b"{", b"[", b'"', b"\\", b"\xff", b"9" * 30]
MODULES = {"hook": targets, "apt": targets_apt, "spine": targets_spine, "system": targets_system}
ALL = [(area, name) for area, module in MODULES.items() for name in module.TARGETS]


def mutate(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randint(1, 6)):
        at = rng.randint(0, len(out))
        match rng.randrange(5):
            case 0:
                out[at : at + 1] = bytes((rng.randrange(256),))
            case 1:
                del out[at : at + rng.randint(1, 20)]
            case 2:
                out[at:at] = rng.choice(TOKENS)
            case 3:
                out[at:at] = out[: rng.randint(0, len(out))]
            case 4:
                del out[at:]
    return bytes(out)


@pytest.mark.parametrize("area", MODULES)
def test_every_target_has_a_corpus_that_it_accepts(area: str) -> None:
    module = MODULES[area]
    assert module.TARGETS.keys() == module.CORPUS.keys()
    for name, seeds in module.CORPUS.items():
        assert seeds
        for seed in seeds:
            module.TARGETS[name](seed)


@pytest.mark.parametrize(("area", "name"), ALL)
def test_no_mutation_of_good_input_raises_anything_but_the_parsers_own_error(area: str, name: str) -> None:
    module = MODULES[area]
    rng = random.Random(name)
    for seed in module.CORPUS[name]:
        for _ in range(ROUNDS // len(module.CORPUS[name])):
            data = mutate(seed, rng)
            try:
                module.TARGETS[name](data)
            except Exception as error:
                pytest.fail(f"{area}: {name} raised {error!r} on {data[:500]!r}")
