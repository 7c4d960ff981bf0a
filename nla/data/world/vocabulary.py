"""The words of the embedded world: every kind of fact, its values, and the words that give each value away.

A *value* (stormy) is named by its own word and hinted at by *evidence* words (thunder, gale, ...). Every evidence word
belongs to exactly one value of one kind, so a single occurrence reveals the fact; ``tests/data/test_world.py`` checks
this. Verbs are (present, past) pairs, which reveal the tense of the document as well.
"""

from typing import NamedTuple


class Value(NamedTuple):
    """One value of a fact, with the nouns and the (present, past) verbs that occur only where it holds."""

    name: str
    words: tuple[str, ...]
    verbs: tuple[tuple[str, str], ...] = ()


def _values(table: str) -> tuple[Value, ...]:
    """Parse lines of ``name: word word ... | present/past present/past``."""
    values = []
    for line in table.strip().splitlines():
        name, _, rest = line.partition(":")
        words, _, verbs = rest.partition("|")
        pairs = tuple((present, past) for present, past in (verb.split("/") for verb in verbs.split()))
        values.append(Value(name.strip(), tuple(words.split()), pairs))
    return tuple(values)


_NAMES = "Tom Anna Ben Clara David Emma Felix Grace Henry Iris Jack Kate Leo Maria Noah Ruth"
HEROES = _values("\n".join(_NAMES.split()))

PLACES = _values("""
harbour: boats pier waves anchor gulls nets
forest: trees moss ferns leaves roots mushrooms
market: stalls crowd prices baskets cloth spices
castle: towers gate throne guards dungeon banners
village: cottages well lane church fence chimneys
school: desks blackboard pupils classroom chalk bell
desert: dunes sand cactus camels oasis lizards
mountain: peak rocks cliff summit valley glacier
island: beach palms shells lagoon reef turtles
station: trains platform rails tickets luggage whistle
museum: statues paintings hall portraits vases relics
garden: flowers roses hedge fountain bench lawn
""")

WEATHERS = _values("""
rainy: rain puddles drops umbrella drizzle
snowy: snow flakes ice drifts blizzard
sunny: sunshine warmth rays shade brightness
stormy: thunder lightning gale clouds hail
foggy: fog mist haze vapour greyness
windy: wind gusts breeze draught whirl
frosty: frost icicles chill cold shivers
hot: heat sweat dust drought thirst
""")

JOBS = _values("""
baker: bread oven dough flour cakes | bakes/baked kneads/kneaded
doctor: medicine bandages patient fever syringe | heals/healed examines/examined
sailor: ropes compass deck mast rudder | rows/rowed steers/steered
farmer: wheat plough cattle barn seeds | plants/planted harvests/harvested
teacher: lesson homework grammar essays spelling | explains/explained corrects/corrected
smith: anvil iron forge bellows horseshoes | bends/bent welds/welded
painter: brush canvas easel colours palette | paints/painted sketches/sketched
tailor: needle thread coat buttons scissors | sews/sewed stitches/stitched
hunter: bow arrows trap knife antlers | chases/chased aims/aimed
singer: melody chorus stage voice applause | sings/sang hums/hummed
carpenter: planks nails chisel timber sawdust | carves/carved measures/measured
miner: coal tunnel pickaxe shaft gravel | digs/dug drills/drilled
""")

MOODS = _values("""
happy: smiles laughter cheer joy delight
sad: tears sighs sorrow grief loneliness
angry: fury shouts rage curses fists
afraid: fear trembling terror panic screams
tired: yawns sleepiness fatigue dreams blinking
proud: pride honour glory boasts dignity
calm: peace silence patience stillness ease
curious: questions wonder riddles guesses interest
""")

ANIMALS = _values("""
dog: tail bone puppy collar | barks/barked growls/growled
cat: whiskers milk kitten paws | purrs/purred meows/meowed
parrot: feathers cage beak perch | squawks/squawked repeats/repeated
horse: saddle mane hooves stable | gallops/galloped neighs/neighed
goat: horns beard hay cheese | bleats/bleated butts/butted
duck: pond eggs wings reeds | quacks/quacked paddles/paddled
rabbit: carrots burrow ears clover | hops/hopped nibbles/nibbled
monkey: bananas branches tricks nuts | swings/swung chatters/chattered
""")

OBJECTS = _values("""
key: lock door keyhole chain | turns/turned
map: ink route borders legend | unfolds/unfolded
ring: gold jewel finger sapphire | polishes/polished
lantern: flame glow wick oil | lights/lit
book: pages chapter cover library | opens/opened
clock: hands minutes dial pendulum | winds/wound
drum: beat rhythm sticks parade | taps/tapped
mirror: glass reflection frame surface | wipes/wiped
""")

TIMES = _values("""
morning: dawn breakfast sunrise dew
noon: midday lunch zenith siesta
evening: dusk supper sunset twilight
night: midnight stars moon darkness
""")

# A genre shows in how its sentences begin.
GENRES: dict[str, tuple[str, ...]] = {
    "story": ("Then", "Soon", "Suddenly", "Once"),
    "letter": ("My friend,", "Believe me,", "You know,", "As I wrote,"),
    "diary": ("Dear diary,", "I remember that", "I noted that", "To myself I say that"),
    "report": ("Officially,", "According to witnesses,", "It is recorded that", "For the record,"),
    "song": ("Oh,", "La la,", "Sing that", "Hey ho,"),
}

TENSES = ("present", "past")

# The kinds of fact that words of the text are about; ``genre`` and ``tense`` belong to its form.
CONTENT: dict[str, tuple[Value, ...]] = {
    "hero": HEROES,
    "place": PLACES,
    "weather": WEATHERS,
    "job": JOBS,
    "mood": MOODS,
    "animal": ANIMALS,
    "object": OBJECTS,
    "time": TIMES,
}
TOPICS = tuple(kind for kind in CONTENT if kind != "hero")
KINDS: dict[str, tuple[str, ...]] = {
    **{kind: tuple(value.name for value in values) for kind, values in CONTENT.items()},
    "genre": tuple(GENRES),
    "tense": TENSES,
    "ending": TOPICS,
}
