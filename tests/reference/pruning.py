"""The four pruning methods, as slowly and plainly as their definitions: lists of numbers, float64, sorting."""

import math


def lamp_scores(weights: list[float]) -> list[float]:
    """Each weight's square over the sum of the squares that are not smaller; equals are taken in their order."""
    order = sorted(range(len(weights)), key=lambda place: (abs(weights[place]), place))
    scores = [0.0] * len(weights)
    for rank, place in enumerate(order):
        if weights[place] != 0:
            scores[place] = weights[place] ** 2 / math.fsum(weights[other] ** 2 for other in order[rank:])
    return scores


def lamp(layers: list[list[float]], amount: float) -> list[int]:
    """How many weights survive in each layer."""
    scores = [lamp_scores(layer) for layer in layers]
    ranked = sorted((score for layer in scores for score in layer if score > 0), reverse=True)
    kept = round(len(ranked) * (1 - amount))
    return [sum(score >= ranked[kept - 1] and score > 0 for score in layer) for layer in scores]


def by_magnitude(layers: list[list[float]], amount: float) -> list[int]:
    ranked = sorted(
        (abs(weight), number, place)
        for number, layer in enumerate(layers)
        for place, weight in enumerate(layer)
        if weight != 0
    )
    kept = ranked[round(amount * len(ranked)) :]
    return [sum(number == own for _, number, _ in kept) for own in range(len(layers))]


def uniform_plus(layers: list[list[float]], amount: float, *, first_is_convolution: bool) -> list[int]:
    left = [sum(weight != 0 for weight in layer) for layer in layers]
    to_zero = round(amount * sum(left))
    spread = list(range(1 if first_is_convolution else 0, len(layers)))
    share = to_zero / sum(left[place] for place in spread)
    least = round(0.2 * len(layers[-1]))
    gone = [0] * len(layers)
    if round((1 - share) * left[-1]) < least:
        spread.remove(len(layers) - 1)
        gone[-1] = max(0, left[-1] - least)
        share = (to_zero - gone[-1]) / sum(left[place] for place in spread)
    for place in spread:
        gone[place] = round(share * left[place])
    return [count - zeroed for count, zeroed in zip(left, gone, strict=True)]


def erk(layers: list[list[float]], shapes: list[tuple[int, ...]], amount: float) -> list[int]:
    left = [sum(weight != 0 for weight in layer) for layer in layers]
    budget = (1 - amount) * sum(left)
    whole: list[int] = []
    while True:
        others = [place for place in range(len(layers)) if place not in whole]
        unit = (budget - sum(left[place] for place in whole)) / sum(sum(shapes[place]) for place in others)
        ratios = {place: round(unit * sum(shapes[place])) / max(left[place], 1e-9) for place in others}
        worst = max(others, key=lambda place: ratios[place])
        if ratios[worst] <= 1:
            return [left[place] if place in whole else round(unit * sum(shapes[place])) for place in range(len(layers))]
        whole.append(worst)
