import itertools

import numpy as np
import pytest

from components.errors import ParameterError
from components.persons.drawn.attributes import ATTRIBUTES, sample_identities
from components.persons.drawn.body import PALETTE
from components.persons.drawn.config import PRESETS, Degradation
from components.persons.drawn.drawing import draw_person
from components.training.randomness import numpy_generator

STILL = Degradation(framing=0, lighting=0, blur=0, noise=0)
PERSON = {
    "gender": "woman",
    "build": "medium",
    "skin": "pale",
    "hair_length": "long",
    "hair_colour": "black",
    "hat": "none",
    "upper_kind": "shirt",
    "upper_colour": "white",
    "upper_pattern": "plain",
    "lower_kind": "trousers",
    "lower_colour": "black",
    "lower_pattern": "plain",
    "shoe_kind": "sneakers",
    "shoe_colour": "brown",
    "bag": "none",
}


def draw(view, seed=0, size=(64, 32), degradation=STILL, **changes):
    person = {**PERSON, **changes}
    return draw_person(
        person, numpy_generator(seed, view), height=size[0], width=size[1], degradation=degradation, view=view
    )


def near(pixels, colour, tolerance=60):
    return np.abs(pixels.astype(int) - np.array(PALETTE[colour])).sum(axis=-1) < tolerance


@pytest.mark.parametrize("size", [(64, 32), (192, 64), (256, 128), (48, 20)])
def test_a_picture_has_the_asked_size_and_the_same_seed_draws_it_again(size):
    first, second = draw("front", size=size), draw("front", size=size)
    assert first.pixels.shape == (*size, 3)
    assert first.pixels.dtype == np.uint8
    assert np.array_equal(first.pixels, second.pixels)
    assert first.shown == second.shown


def test_pictures_of_one_person_differ():
    pictures = [draw("front", seed, degradation=PRESETS["clean"]).pixels for seed in range(4)]
    assert all(not np.array_equal(a, b) for a, b in itertools.combinations(pictures, 2))


@pytest.mark.parametrize("view", ATTRIBUTES["view"])
def test_the_colours_said_to_be_shown_are_in_the_picture(view):
    picture = draw(view, upper_colour="purple", lower_colour="green", hat="beanie", hat_colour="red")
    assert picture.shown["view"] == view
    rows = {
        colour: np.nonzero(near(picture.pixels, colour, 110).any(axis=1))[0].mean()
        for colour in ("red", "purple", "green")
    }
    assert rows["red"] < rows["purple"] < rows["green"]


@pytest.mark.parametrize("bag", ["handbag", "satchel"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("view", ["front", "back"])
def test_the_side_of_a_bag_is_where_the_viewer_sees_it(bag, side, view):
    picture = draw(view, bag=bag, bag_side=side, bag_colour="yellow")
    centre = np.nonzero(near(picture.pixels, "yellow", 80))[1].mean()
    assert picture.shown["bag_side"] == ("left" if centre < 15.5 else "right")
    assert (picture.shown["bag_side"] == side) == (view == "back")


@pytest.mark.parametrize("view", ["left", "right"])
def test_a_satchel_on_the_far_side_is_not_mentioned_and_on_the_near_side_it_is(view):
    far = "right" if view == "left" else "left"
    hidden = draw(view, bag="satchel", bag_side=far, bag_colour="yellow").shown
    visible = draw(view, bag="satchel", bag_side=view, bag_colour="yellow").shown
    assert "bag" not in hidden
    assert "bag_colour" not in hidden
    assert visible["bag"] == "satchel"
    assert "bag_side" not in visible


@pytest.mark.parametrize("view", ATTRIBUTES["view"])
def test_changing_a_shown_attribute_changes_the_picture_and_a_hidden_colour_hardly_does(view):
    base = {
        "hat": "cap",
        "hat_colour": "red",
        "hair_length": "short",
        "bag": "handbag",
        "bag_side": "left",
        "bag_colour": "blue",
    }
    base |= {"upper_kind": "coat", "lower_kind": "shorts"}
    reference = draw(view, **base)
    everything = {**PERSON, **base}
    for name, values in ATTRIBUTES.items():
        if name == "view" or name not in everything or name in ("bag", "hat"):
            continue
        other = next(value for value in values if value != everything[name] and value != "skirt")
        changed = draw(view, **{**base, name: other})
        difference = np.abs(changed.pixels.astype(int) - reference.pixels.astype(int)).sum(axis=-1) > 40
        if name in reference.shown:
            assert difference.sum() >= 3, name
        elif name.endswith(("colour", "pattern")):
            assert difference.sum() <= 25, name


def test_hair_under_a_hat_is_not_shown_from_the_front_but_long_hair_is():
    assert "hair_length" not in draw("front", hat="beanie", hat_colour="red", hair_length="short").shown
    assert draw("front", hat="beanie", hat_colour="red", hair_length="long").shown["hair_length"] == "long"


@pytest.mark.parametrize("preset", PRESETS)
def test_what_a_picture_shows_agrees_with_the_identity_in_every_preset(preset):
    for index, person in enumerate(sample_identities(40, numpy_generator(3, "people"))):
        view = ATTRIBUTES["view"][index % 4]
        shown = draw_person(person, numpy_generator(3, index), degradation=PRESETS[preset], view=view).shown
        for name, value in shown.items():
            assert value in ATTRIBUTES[name]
            if name == "bag" and value == "none":
                assert person["bag"] == "none" or view in ("left", "right") or preset == "occluded"
            elif name not in ("bag_side", "view"):
                assert value == person[name]


def test_occlusion_hides_attributes():
    occluded = Degradation(occlusion=1.0)
    counts = []
    for strength in (Degradation(), occluded):
        people = sample_identities(40, numpy_generator(5, "people"))
        counts.append(
            sum(len(draw_person(p, numpy_generator(5, i), degradation=strength).shown) for i, p in enumerate(people))
        )
    assert counts[1] < 0.9 * counts[0]


def test_patterns_survive_at_the_smallest_size():
    """Within the torso, a patterned garment varies more than a plain one."""
    spread = {}
    for pattern in ATTRIBUTES["upper_pattern"]:
        torso = draw("front", upper_pattern=pattern, upper_colour="blue", hair_length="short").pixels[20:34, 12:20]
        spread[pattern] = torso.astype(float).std(axis=(0, 1)).sum()
    assert min(spread[p] for p in spread if p != "plain") > 3 * spread["plain"]


@pytest.mark.parametrize("size", [(64, 33), (64, 20), (16, 8)])
def test_a_size_out_of_range_is_refused(size):
    with pytest.raises(ParameterError, match=f"{size[0]} x {size[1]}"):
        draw("front", size=size)


def test_unknown_views_and_strengths_are_refused():
    with pytest.raises(ParameterError, match="above"):
        draw("above")
    with pytest.raises(ParameterError, match="blur"):
        Degradation(blur=2)
