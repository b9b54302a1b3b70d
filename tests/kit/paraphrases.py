"""Questions that repeat earlier ones in other words, among questions that share their words."""

from __future__ import annotations

import random
from dataclasses import dataclass

# Each entry: the same thing said in different ways. Verbs also in the form after "of".
VERBS = [
    (("repair", "repairing"), ("fix", "fixing")),
    (("clean", "cleaning"), ("wash", "washing")),
    (("build", "building"), ("construct", "constructing")),
    (("choose", "choosing"), ("pick", "picking")),
    (("store", "storing"), ("keep", "keeping")),
    (("paint", "painting"), ("give a new colour to", "giving a new colour to")),
    (("move", "moving"), ("relocate", "relocating")),
    (("sell", "selling"), ("find a buyer for", "finding a buyer for")),
    (("measure", "measuring"), ("determine the size of", "determining the size of")),
    (("insure", "insuring"), ("get coverage for", "getting coverage for")),
    (("rent", "renting"), ("lease", "leasing")),
    (("protect", "protecting"), ("guard", "guarding")),
    (("inspect", "inspecting"), ("examine", "examining")),
    (("replace", "replacing"), ("swap out", "swapping out")),
    (("decorate", "decorating"), ("adorn", "adorning")),
    (("photograph", "photographing"), ("take pictures of", "taking pictures of")),
]
THINGS = [
    (("bicycle", "bicycles"), ("bike", "bikes")),
    (("sofa", "sofas"), ("couch", "couches")),
    (("laptop", "laptops"), ("portable computer", "portable computers")),
    (("greenhouse", "greenhouses"), ("glasshouse", "glasshouses")),
    (("wooden fence", "wooden fences"), ("timber fence", "timber fences")),
    (("kitchen cupboard", "kitchen cupboards"), ("kitchen cabinet", "kitchen cabinets")),
    (("piano", "pianos"), ("keyboard instrument", "keyboard instruments")),
    (("sailing boat", "sailing boats"), ("yacht", "yachts")),
    (("carpet", "carpets"), ("rug", "rugs")),
    (("fireplace", "fireplaces"), ("hearth", "hearths")),
    (("aquarium", "aquariums"), ("fish tank", "fish tanks")),
    (("garage door", "garage doors"), ("car port gate", "car port gates")),
    (("camera lens", "camera lenses"), ("photo objective", "photo objectives")),
    (("solar panel", "solar panels"), ("photovoltaic panel", "photovoltaic panels")),
    (("chicken coop", "chicken coops"), ("hen house", "hen houses")),
    (("marble staircase", "marble staircases"), ("marble steps", "flights of marble steps")),
    (("swimming pool", "swimming pools"), ("pool", "pools")),
    (("antique clock", "antique clocks"), ("old clock", "old clocks")),
    (("tent", "tents"), ("camping shelter", "camping shelters")),
    (("bookshelf", "bookshelves"), ("bookcase", "bookcases")),
]
TIMES = [
    ("after a storm", "once a storm is over"),
    ("in winter", "during the cold months"),
    ("before a wedding", "ahead of a marriage"),
    ("while travelling abroad", "on a journey overseas"),
    ("at night", "in the dark"),
    ("during a drought", "when rain is lacking"),
    ("near the coast", "close to the sea"),
    ("in a small flat", "in a tiny apartment"),
    ("for elderly parents", "for ageing parents"),
    ("on a farm", "in the countryside"),
    ("with small children around", "with toddlers around"),
    ("after a house fire", "after flames damaged the house"),
    ("in high mountains", "at great altitude"),
    ("for a school project", "as homework for school"),
    ("in a rented house", "as a tenant"),
    ("before the baby arrives", "ahead of the baby's birth"),
]
CARES = [
    ("without spending much money", "on a small budget"),
    ("safely", "without risking injuries"),
    ("quickly", "within an afternoon"),
    ("without special tools", "with household tools alone"),
    ("without any noise", "in silence"),
    ("in an environmentally friendly way", "without harm to nature"),
    ("without help from professionals", "without hiring experts"),
    ("so that it lasts for decades", "with results that last for decades"),
    ("alone", "without anyone's help"),
    ("without breaking the law", "legally"),
]
CITIES = """Lisbon Oslo Cairo Lima Perth Dublin Kyoto Quebec Nairobi Vienna Seville Krakow Tunis
Havana Bergen Turin Leeds Ghent Porto Basel Izmir Hanoi Accra Dallas Denver Oxford Malaga Riga Split
Bremen Lyon Gdansk Cork Tampa Bristol Madrid Athens Bergamo Utrecht Salzburg"""
PLACES = [(city, city) for city in CITIES.split()]
FORMS = [
    "How do I {verb} a {thing} {time} {care} in {place}?",
    "What is the best way of {verbing} {things} {time} in {place}, {care}?",
    "{time}, how should {things} be dealt with in {place} if I have to {verb} them {care}?",
    "We live in {place} and need to {verb} our {thing} {care}. What works {time}?",
    "Explain {care} to a beginner: {verbing} a {thing} {time}, {place}.",
    "Which steps are involved in {verbing} {things} {care} {time}? It is for {place}.",
]
Idea = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """memory: the earlier questions. asked: by its place in the memory, each question that is
    asked again, as it is asked now."""

    memory: list[str]
    asked: dict[int, str]


def generate(seed: int, questions: int = 200, neighbours: int = 4, synonyms: float = 0.25) -> Case:
    """neighbours: for each question that is asked again, how many others in the memory speak of
    two of the same five things. synonyms: the share of those that are said in other words."""
    rng = random.Random(seed)
    pools = (VERBS, THINGS, TIMES, CARES, PLACES)

    def idea() -> Idea:
        return tuple(rng.randrange(len(pool)) for pool in pools)

    def said(said_of: Idea, ways: list[int], form: str) -> str:
        (verb, verbing), (thing, things), time, care, place = (
            pool[i][way] for pool, i, way in zip(pools, said_of, ways, strict=True)
        )
        text = form.format(
            verb=verb,
            verbing=verbing,
            thing=thing,
            things=things,
            time=time,
            care=care,
            place=place,
        )
        return text[0].upper() + text[1:]

    targets: list[Idea] = []
    while len(targets) < questions:
        if (new := idea()) not in targets:
            targets.append(new)
    memory, asked = [], {}
    for target in targets:
        ways, form = [rng.randrange(2) for _ in pools], rng.choice(FORMS)
        others = [1 - way if rng.random() < synonyms else way for way in ways]
        asked[len(memory)] = said(target, others, rng.choice([f for f in FORMS if f != form]))
        memory.append(said(target, ways, form))
    for target in targets:
        for _ in range(neighbours):
            near = target
            while near in targets:
                kept = rng.sample(range(len(pools)), 2)
                near = tuple(target[i] if i in kept else new for i, new in enumerate(idea()))
            memory.append(said(near, [rng.randrange(2) for _ in pools], rng.choice(FORMS)))
    return Case(memory, asked)
