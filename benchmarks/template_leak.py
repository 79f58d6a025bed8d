"""Measures what API keys of the scopes `search` and `investigate` reveal about everybody's embeddings.

    python -m benchmarks.template_leak [--probes 1500 10000]

Probes are compared with 2,000 random people, and the service's own code decides and serializes what the key gets. The
probes are embeddings, which stand for photos: that favors the attacker, who can shape photos towards embeddings of
a public model with less precision. Embeddings of different people are spread evenly, like those of 145 people of LFW
with `sface`: cosines of 0.00 on average with a standard deviation of 0.09, 1 / sqrt(128) being 0.088.

With `investigate` the attacker searches random probes. Each answer names 100 people and their scores, which are linear
equations for their embeddings. With `search` it searches random probes until somebody matches, then probes around the
estimate of that person, and continues with random ones when it has enough equations. The estimate of people who were
never named counts as cosine 0, that of any guess. Writes benchmarks/results/template_leak.csv.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.lfw import RESULTS, Cell, write_results
from indexer.clock import now
from indexer.models.packs import SFACE
from indexer.rounding import SCORE_DECIMALS
from indexer.types import NamedIdentity
from search_service.api.disclosure import restricted_answer, restricted_query
from search_service.api.models.probes import CandidatePayload, answer_payload
from search_service.matching.decision import decide
from search_service.matching.ranking import Candidate
from search_service.search import MAX_TOP_K, Answer, FaceAnswer, Query
from search_service.store.api_keys import ApiKey, Scope

PEOPLE = 2_000
PROBES = (1_500, 10_000)
FPIR = 0.01
STRANGERS = 20_000
"""Whose best scores give the threshold for FPIR."""
SEED = 0

EQUATIONS = 1.5
"""Scores of one person that the attacker collects, as a multiple of the dimensions; more add little."""

FIRST_STEP = 0.3
"""Length of the random step away from the estimate of a person; adapted so that about half of the probes match."""

RIDGE = 1e-3
"""Variance of rounding to two decimals, times the dimensions."""

Vector = NDArray[np.float64]
Answers = Callable[[Vector], list[CandidatePayload]]
Estimates = dict[str, Vector]


class Equations:
    """Scores of one person, and the embedding that explains them best."""

    def __init__(self) -> None:
        self._probes: list[Vector] = []
        self._scores: list[float] = []

    def __len__(self) -> int:
        return len(self._scores)

    def add(self, probe: Vector, score: float) -> None:
        self._probes.append(probe)
        self._scores.append(score)

    def estimate(self) -> Vector:
        probes, scores = np.stack(self._probes), np.array(self._scores)
        return unit(np.linalg.solve(probes.T @ probes + RIDGE * np.eye(probes.shape[1]), probes.T @ scores))


def unit(vector: NDArray[np.floating]) -> Vector:
    return np.asarray(vector / np.linalg.norm(vector), np.float64)


def by_lists(answer: Answers, probes: int, rng: np.random.Generator) -> Estimates:
    """Attacks with answers that list people for every probe, similar or not."""
    people: dict[str, Equations] = defaultdict(Equations)
    for _ in range(probes):
        probe = unit(rng.standard_normal(SFACE.dim))
        for candidate in answer(probe):
            people[candidate.external_id].add(probe, candidate.score)
    return {name: equations.estimate() for name, equations in people.items()}


def by_matches(answer: Answers, probes: int, rng: np.random.Generator) -> Estimates:
    """Attacks with answers that list only people who match."""
    people: dict[str, Equations] = defaultdict(Equations)
    target, center, step = "", np.zeros(SFACE.dim), FIRST_STEP
    for _ in range(probes):
        moved = unit(rng.standard_normal(SFACE.dim))
        probe = unit(center + step * moved) if target else moved
        found = {candidate.external_id: candidate.score for candidate in answer(probe)}
        for name, score in found.items():
            people[name].add(probe, score)
        step *= 1.1 if target in found else 0.9
        if target and len(people[target]) >= EQUATIONS * SFACE.dim:
            target = ""
        elif not target and found:
            target, step = next(iter(found)), FIRST_STEP
        if target in found:
            center = people[target].estimate()
    return {name: equations.estimate() for name, equations in people.items()}


class Service:
    """Answers probes as the service does for a key, with exact scores of every person and one face of each."""

    def __init__(self, people: Mapping[str, Vector], scope: Scope, rng: np.random.Generator) -> None:
        self._identities = [NamedIdentity(n, name, None, {}, 1) for n, name in enumerate(people)]
        self._templates = np.stack(list(people.values()))
        self._key = ApiKey("0", "key", frozenset({scope}), None, None, None, now(), None, None)
        self._top_k = restricted_query(Query(MAX_TOP_K), self._key).top_k
        strangers = rng.standard_normal((STRANGERS, SFACE.dim))
        best = [float((self._templates @ unit(stranger)).max()) for stranger in strangers]
        self._threshold = round(float(np.quantile(best, 1 - FPIR)), SCORE_DECIMALS)

    def __call__(self, probe: Vector) -> list[CandidatePayload]:
        scores = self._templates @ probe
        best = np.argsort(-scores)[: self._top_k]
        found = [Candidate(n, self._identities[i], float(scores[i]), int(i)) for n, i in enumerate(best, 1)]
        decision = decide(found, self._threshold).decision
        face = FaceAnswer(None, None, decision, self._threshold, FPIR, tuple(found))
        answer = Answer("staff", SFACE.name, (face,))
        return answer_payload(restricted_answer(answer, self._key), [None]).faces[0].candidates


def measure(budgets: Sequence[int]) -> Iterator[dict[str, Cell]]:
    rng = np.random.default_rng(SEED)
    people = {f"person {n}": unit(rng.standard_normal(SFACE.dim)) for n in range(PEOPLE)}
    for scope, attack in ((Scope.INVESTIGATE, by_lists), (Scope.SEARCH, by_matches)):
        service = Service(people, scope, np.random.default_rng(SEED + 1))
        for probes in budgets:
            estimates = attack(service, probes, np.random.default_rng(SEED + 2))
            cosines = [float(estimate @ people[name]) for name, estimate in estimates.items()]
            yield {
                "scope": str(scope),
                "people": PEOPLE,
                "probes": probes,
                "people_named": len(estimates),
                "cosine_above_0.9": sum(cosine > 0.9 for cosine in cosines),
                "median_cosine_of_named": round(float(np.median(cosines)), 3),
                "mean_cosine_of_all": round(sum(cosines) / PEOPLE, 3),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--probes", type=int, nargs="+", default=list(PROBES))
    write_results(RESULTS / "template_leak.csv", list(measure(parser.parse_args().probes)))


if __name__ == "__main__":
    main()
