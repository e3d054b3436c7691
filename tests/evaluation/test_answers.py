"""Each rule of comparing answers against values worked out by hand from its publication."""

from __future__ import annotations

import pytest

from unicom_jax.evaluation.answers import (
    RULES,
    anls,
    choice,
    chosen_letter,
    exact,
    normalise,
    relaxed,
    token_f1,
    vqa,
    vqa_normalise,
)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("", "+"),
        ("", "..."),
        ("-5", "5"),
        ("−5", "5"),
        ("-$5", "$5"),
        ("$5", "5%"),
        ("$5", "5"),
        ("€5", "$5"),
        ("-€5", "€5"),
        ("3-5", "35"),
        ("कि", "का"),  # one consonant, two vowel signs
        ("กา", "กี"),
        ("1.5", "15"),
        (".5", "5"),
        ("1,5", "15"),
        ("3:30", "330"),
        ("5²", "52"),
        ("1/2", "12"),
        ("C#", "C"),
        ("a*b", "ab"),
        ("<", ">"),
        ("👍", "👎"),
        ("two circles", "two"),
    ],
)
def test_texts_that_mean_different_things_are_not_equal(first, second):
    assert normalise(first) != normalise(second)
    assert exact(first, (second,)) == 0.0


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("  A red,  Circle. ", "a red circle"),
        ("Two!", "two"),
        ("(yes)", "yes"),
        ("«да»", "ДА"),
        ("हाँ।", "हाँ"),
        ("はい。", "はい"),
        ("５", "5"),
        ("é", "e\u0301"),  # composed and decomposed
        ("STRASSE", "straße"),
        ("5.", "5"),
        ("−5", "-5"),
        ("it’s", "it's"),
        ("well-lit", "well lit"),
        ("red, green", "red green"),
    ],
)
def test_spellings_of_one_text_are_equal(first, second):
    assert exact(first, ("something else", second)) == 1.0


def test_token_f1_takes_the_best_reference():
    assert token_f1("a red square", ("a blue circle", "a red circle")) == pytest.approx(2 / 3)
    assert token_f1("", ("a red circle",)) == 0.0


# ---- VQA --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "prepared"),
    [
        ("Two dogs.", "2 dogs"),
        ("The  red ball!", "red ball"),
        ("100,978", "100978"),
        ("3.5", "3.5"),
        (".5", ".5"),
        ("3.5.", "3.5"),
        ("U.S.", "us"),
        ("dont", "don't"),
        ("black/white", "black white"),
        ("none", "0"),
        ("3:30", "3:30"),
        ("dog's", "dog's"),
        ("its", "its"),
    ],
)
def test_vqa_prepares_answers_as_it_published(text, prepared):
    assert vqa_normalise(text) == prepared


@pytest.mark.parametrize(
    ("equal", "accuracy"),
    # k of 10 people agree: k sets leave out one of them and keep k - 1, the others keep all k.
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_vqa_accuracy_averages_over_the_sets_of_nine_people(equal, accuracy):
    people = ("Two",) * equal + ("many",) * (10 - equal)
    assert vqa("2", people) == pytest.approx(accuracy)


def test_vqa_with_one_reference_is_equality():
    assert vqa("a cat", ("Cat.",)) == 1.0
    assert vqa("a cat", ("dog",)) == 0.0


# ---- ChartQA ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("105", "100", 1.0),  # off by exactly 5%
        ("95", "100", 1.0),
        ("105.1", "100", 0.0),
        ("-5", "5", 0.0),
        ("-5.2", "-5", 1.0),
        ("12%", "0.12", 1.0),
        ("12%", "12", 0.0),
        ("$5", "5%", 0.0),
        ("0.01", "0", 0.0),  # five percent of nothing
        ("Yes ", "yes", 1.0),
        ("2014", "twenty", 0.0),
        ("nan", "5", 0.0),
        ("NaN", "nan", 1.0),  # a word
    ],
)
def test_relaxed_accuracy_allows_five_percent_of_a_number_and_nothing_of_a_word(
    prediction, reference, score
):
    assert relaxed(prediction, (reference,)) == score


# ---- DocVQA, multiple choice ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "references", "score"),
    [
        ("Hello  World", ("hello world",), 1.0),
        ("helo", ("hello",), 0.8),  # one edit of five letters
        ("abcd", ("abxy",), 0.0),  # two of four: half or more counts as nothing
        ("abcde", ("abcxy",), 0.6),  # two of five
        ("5", ("-5", "15th"), 0.0),
        ("kitten", ("sitting", "mitten"), 5 / 6),
        ("", ("x",), 0.0),
    ],
)
def test_anls_is_the_similarity_to_the_nearest_reference(prediction, references, score):
    assert anls(prediction, references) == pytest.approx(score)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(C)", "C"),
        ("D.", "D"),
        ("A: a cat", "A"),
        ("A) cat", "A"),
        ("The answer is B.", "B"),
        ("Answer: (D) four", "D"),
        ("Option C", "C"),
        ("A cat", ""),
        ("cat", ""),
        ("", ""),
        ("5", ""),
    ],
)
def test_the_chosen_letter_is_read_and_words_are_not(text, letter):
    assert chosen_letter(text) == letter


def test_a_choice_without_a_letter_is_wrong():
    assert choice("(B) two", ("B",)) == 1.0
    assert choice("C", ("B",)) == 0.0
    assert choice("", ("",)) == 0.0


def test_every_rule_scores_the_reference_itself_as_right():
    for name, rule in RULES.items():
        assert rule("B", ("B",)) == 1.0, name
