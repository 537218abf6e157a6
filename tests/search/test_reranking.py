import numpy as np
import pytest

from components.search.reranking import reranked


def unit(values):
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


def by_loops(query, pool, is_picture, k1, k2, weight):
    """The paper's equations with sets and loops, one picture at a time."""
    everyone = [query, *pool]
    count = len(everyone)
    raw = [
        [0.0 if i == j else max(0.0, 1 - float(a @ b)) for j, b in enumerate(everyone)] for i, a in enumerate(everyone)
    ]
    largest = [max(raw[i][j] for i in range(count)) for j in range(count)]
    d = [[raw[j][i] / largest[i] for j in range(count)] for i in range(count)]

    def nearest(i):
        others = [j for j in range(count) if j != i and (is_picture or j != 0 or i == 0)]
        return [i, *sorted(others, key=lambda j: d[i][j])]

    lists = [nearest(i) for i in range(count)]

    def sets(i, k):
        if i == 0 and not is_picture:
            return set(lists[0][: k + 1])
        return {j for j in lists[i][: k + 1] if i in lists[j][: k + 1]}

    encodings = []
    for i in range(count):
        own = sets(i, k1)
        extended = set(own)
        for c in own:
            theirs = sets(c, round(k1 / 2))
            if 3 * len(own & theirs) > 2 * len(theirs):
                extended |= theirs
        weights = {j: np.exp(-d[i][j]) for j in extended}
        total = sum(weights.values())
        encodings.append({j: value / total for j, value in weights.items()})
    averaged = []
    for i in range(count):
        near = lists[i][:k2]
        averaged.append({j: sum(encodings[n].get(j, 0) for n in near) / len(near) for n in near for j in encodings[n]})
    final = []
    for g in range(1, count):
        keys = averaged[0].keys() | averaged[g].keys()
        low = sum(min(averaged[0].get(j, 0), averaged[g].get(j, 0)) for j in keys)
        high = sum(max(averaged[0].get(j, 0), averaged[g].get(j, 0)) for j in keys)
        final.append((1 - weight) * (1 - low / high) + weight * d[0][g])
    return final


@pytest.mark.parametrize("is_picture", [True, False])
@pytest.mark.parametrize(("count", "k1", "k2"), [(40, 8, 4), (40, 7, 1), (5, 20, 6), (1, 20, 6)])
def test_the_order_is_that_of_the_equations_with_sets_and_loops(is_picture, count, k1, k2):
    random = np.random.default_rng(count + k1)
    people = random.standard_normal((count // 4 + 1, 12))
    pool = unit(people[np.arange(count) // 4] + 0.5 * random.standard_normal((count, 12)))
    query = unit(people[0] + 0.8 * random.standard_normal(12))
    order = reranked(query, pool, is_picture=is_picture, k1=k1, k2=k2)
    final = np.array(by_loops(query, pool, is_picture, k1, k2, 0.3))
    assert sorted(order) == list(range(count))
    assert (np.diff(final[order]) > -1e-12).all()


@pytest.mark.parametrize("is_picture", [True, False])
def test_pictures_of_the_same_person_come_forward(is_picture):
    """The query lies between a person's six pictures and strangers; two of the six are further from it than a stranger."""
    random = np.random.default_rng(5)
    person, other = np.eye(16)[0], np.eye(16)[1]
    same = unit(person + 0.15 * random.standard_normal((6, 16)))
    strangers = unit(0.75 * person + other + 0.15 * random.standard_normal((30, 16)))
    query, near_stranger = unit(person + 0.3 * strangers[0]), unit(person + 0.8 * other)
    pool = np.concatenate([same, strangers, near_stranger[None]])
    assert not set(range(6)) <= set(np.argsort(-(pool @ query))[:7])
    assert set(range(6)) <= set(reranked(query, pool, is_picture=is_picture, k1=7, k2=3)[:7])


def test_an_empty_pool_stays_empty():
    assert reranked(np.ones(3), np.empty((0, 3)), is_picture=False).tolist() == []
