"""The text sketches: the same bits with and without numpy, on every machine, and alike for texts that are."""

from __future__ import annotations

import math
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlsecd.taps import sketch
from mlsecd.taps.sketch import DIMENSIONS, MAX_CHARACTERS, SLOTS, Sketcher, plain, similarity

KEY = bytes(range(32))

FORM = "Translate this sentence into French and answer with the translation only: {}"
SENTENCES = (
    "the cat sat on the mat and looked at the moon",
    "our quarterly report shows that sales grew in the south",
    "please send the parcel to the new address before Friday",
)


def numbers(vector: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{DIMENSIONS}f", vector)


def cosine(one: str, other: str) -> float:
    sketcher = Sketcher(KEY)
    left, right = numbers(sketcher.vector(one)), numbers(sketcher.vector(other))
    return sum(a * b for a, b in zip(left, right, strict=True))


# Test vectors, key = bytes 00 01 ... 1f. Another language's sketcher must give the same.
VECTOR_ABC = {15: 1}
VECTOR_FRANCE = {
    2: -1,
    4: 1,
    13: 1,
    17: -1,
    21: 1,
    23: 1,
    24: 1,
    29: 1,
    30: -1,
    39: -1,
    42: -1,
    44: 1,
    51: -1,
    52: 1,
    55: 1,
    56: -2,
    62: 1,
}  # before scaling to length 1
MINHASH_FRANCE = {0: 3342713178, 21: 3536217482, 23: 2428739106, 27: 2136600331}
TEMPLATE_FRANCE = "6e07b8b83edd398b"
VECTOR_WIDE = {
    6: -1,
    17: 1,
    18: 1,
    21: 1,
    25: -1,
    26: -1,
    32: 1,
    36: -1,
    38: -1,
    41: -1,
    42: -1,
    44: 1,
    45: 1,
    48: 1,
    63: -1,
}
TEMPLATE_WIDE = "09846edd5780d7a9"


def held(vector: bytes) -> dict[int, float]:
    return {at: value for at, value in enumerate(numbers(vector)) if value}


def scaled(sums: dict[int, int]) -> dict[int, float]:
    norm = math.sqrt(sum(value * value for value in sums.values()))
    return {at: struct.unpack("<f", struct.pack("<f", value / norm))[0] for at, value in sums.items()}


def test_vectors() -> None:
    sketcher = Sketcher(KEY)
    assert held(sketcher.vector("abc")) == scaled(VECTOR_ABC)
    made = sketcher.sketch("What is the capital of  FRANCE?")
    assert held(made.vector) == scaled(VECTOR_FRANCE)
    assert {at: value for at, value in enumerate(made.minhash) if value >= 0} == MINHASH_FRANCE
    assert made.template == TEMPLATE_FRANCE
    wide = sketcher.sketch("Größe: 日本語のテキスト 12,5 cm")
    assert held(wide.vector) == scaled(VECTOR_WIDE)
    assert wide.template == TEMPLATE_WIDE


@settings(deadline=None)
@given(st.text(max_size=300), st.binary(max_size=64))
def test_numpy_changes_no_bit(text: str, key: bytes) -> None:
    fast = Sketcher(key).sketch(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sketch, "np", None)
        slow = Sketcher(key).sketch(text)
    assert fast == slow


@settings(deadline=None)
@given(st.text(alphabet=st.characters(), max_size=5000))
def test_any_text_is_sketched_within_limits(text: str) -> None:
    made = Sketcher(KEY).sketch(text)
    length = sum(value * value for value in numbers(made.vector))
    assert length == 0 or length == pytest.approx(1, abs=1e-5)
    assert len(made.minhash) == SLOTS
    assert all(-1 <= value < 1 << 32 for value in made.minhash)
    assert len(made.template) in {0, 16}
    assert len(plain(text)) <= 3 * MAX_CHARACTERS


def test_a_lone_surrogate_is_a_text_too() -> None:
    assert Sketcher(KEY).sketch("a\ud800b c d").template


def test_case_and_white_space_say_nothing() -> None:
    assert Sketcher(KEY).sketch("Tell  me\n a JOKE, please") == Sketcher(KEY).sketch("tell me a joke, please")
    assert Sketcher(KEY).sketch("\uff34\uff45\uff4c\uff4c me more") == Sketcher(KEY).sketch(
        "tell me more"
    )  # full width


def test_wording_shows_in_the_cosine() -> None:
    same = cosine(SENTENCES[0], SENTENCES[0].replace("moon", "stars"))
    other = max(cosine(SENTENCES[0], SENTENCES[1]), cosine(SENTENCES[0], SENTENCES[2]))
    assert same > 0.8
    assert other < 0.6


def test_copies_with_changes_share_slots() -> None:
    text = " ".join(f"word{at} says" for at in range(150))
    changed = text.replace("word75 ", "phrase ")
    one, near, far = (Sketcher(KEY).sketch(each).minhash for each in (text, changed, " ".join(SENTENCES)))
    assert similarity(one, one) == 1
    assert similarity(one, near) > 0.85
    assert similarity(one, far) < 0.15
    assert similarity([-1] * SLOTS, [-1] * SLOTS) == 0


def test_texts_of_one_form_share_a_template() -> None:
    sketcher = Sketcher(KEY)
    assert len({sketcher.sketch(FORM.format(text)).template for text in SENTENCES}) == 1
    assert len({sketcher.sketch(text).template for text in SENTENCES}) == 3
    assert sketcher.sketch("Item 17 of 900: label it").template == sketcher.sketch("item 4 of 3: label it").template


def test_the_middle_of_a_long_text_is_not_read() -> None:
    sketcher = Sketcher(KEY)
    head, tail = "a b " * 400, " c d" * 400
    assert sketcher.sketch(head + "x " * 5_000 + tail) == sketcher.sketch(head + "y " * 9_000 + tail)
    assert sketcher.sketch(head + tail) != sketcher.sketch(head)


def test_another_key_gives_another_sketch() -> None:
    one, other = Sketcher(KEY).sketch(SENTENCES[0]), Sketcher(b"other").sketch(SENTENCES[0])
    assert one.template != other.template
    assert similarity(one.minhash, other.minhash) < 0.1
    assert abs(sum(a * b for a, b in zip(numbers(one.vector), numbers(other.vector), strict=True))) < 0.6


def test_nothing_to_sketch() -> None:
    assert Sketcher(KEY).sketch("") == (bytes(4 * DIMENSIONS), [-1] * SLOTS, "")
    assert Sketcher(KEY).sketch("?!").template == ""
    assert similarity(Sketcher(KEY).sketch("hello").minhash, Sketcher(KEY).sketch("hello").minhash) == 1
