"""A grammar that writes short, simple English stories.

A story is a plot (a list of beats) told about a cast. Every beat is a template
with `[this|that]` alternatives and `{slot}` references. Characters carry their
own pronouns, so "he", "her" and "himself" always agree with the person they
stand for, whatever combination the dice produce.
"""

import random
import re

# The shipped model was begun on a first revision of this text (1), went on with others (2, 3), and
# was finished on the present one (4). What differs is kept behind this switch, so that its training
# can be repeated.
LESSON = 4

# --- words -------------------------------------------------------------------

GIRLS = """Lily Mia Anna Emma Sara Nora Ella Lucy Rosie Ivy Zoe Clara Maya Ruby Amy Molly Nina Julia
Hannah Grace Leila Tess Alma Daisy Bella Kate Eva Ada Sofia Olive Iris Jane Lena Fay Hazel Wendy Poppy
Mara Priya Aisha Yuki Greta Elsa Marta Tara Dina Rita Carla Betty Annie""".split()
BOYS = """Tom Ben Max Sam Leo Jack Tim Noah Finn Oscar Henry Adam Luke Peter Theo Owen Eli Hugo Jonas
Omar Raj Kenji Felix Charlie Daniel Oliver Louis Paul Simon Toby Will Jake Arlo Milo Ned Nico Otto Ravi
Ian Karl Mark David Joe Billy Harry George Frank Emil Anton Lars""".split()
PETS = """Pip Bramble Tilly Rusty Hoppy Coco Fern Dot Biscuit Pepper Willow Button Clover Nutmeg Pebble
Sunny Misty Ginger Muffin Patch Scout Juniper Maple Socks Tumble Bubbles Sparrow Twig Mossy
Dusty Flick Nibbles Waffle Acorn Ripple Bean Moss Cricket Pumpkin Copper Snowy Bo Momo Kiki
Tup Zuzu""".split()

# kind: (homes, haunts)
FOREST = ("forest", "woods", "green forest", "quiet woods")
FARM = ("farm", "big farm", "sunny farm", "old farm")
WATER = ("river", "blue lake", "pond", "quiet river")
SEA = ("sea", "warm blue sea", "ocean", "sandy shore")
COLD = ("snowy north", "icy sea", "land of ice and snow")
WARM = ("wide plain", "jungle", "hot grassland", "green jungle")
TOWN = ("small town", "village", "green hills", "market square", "big city", "seaside town")
MAGIC = ("old castle", "land far away", "tall tower", "hidden valley", "misty mountain")
ANIMALS = {
    "fox": ("den", FOREST), "rabbit": ("burrow", FOREST), "bear": ("cave", FOREST), "owl": ("tree", FOREST),
    "squirrel": ("tree", FOREST), "hedgehog": ("nest", FOREST), "deer": ("forest home", FOREST),
    "wolf": ("den", FOREST), "mouse": ("hole", FOREST), "badger": ("burrow", FOREST), "raccoon": ("tree", FOREST),
    "mole": ("tunnel", FOREST), "bird": ("nest", FOREST), "wren": ("nest", FOREST), "robin": ("nest", FOREST),
    "crow": ("nest", FOREST), "snail": ("garden", FOREST), "bee": ("hive", FOREST), "butterfly": ("garden", FOREST),
    "ant": ("nest", FOREST), "spider": ("web", FOREST), "ladybug": ("garden", FOREST), "caterpillar": ("leaf", FOREST),
    "cat": ("basket", TOWN), "kitten": ("basket", TOWN), "dog": ("house", TOWN), "puppy": ("house", TOWN),
    "hamster": ("cage", TOWN), "parrot": ("cage", TOWN),
    "horse": ("stable", FARM), "pony": ("stable", FARM), "cow": ("barn", FARM), "pig": ("pen", FARM),
    "sheep": ("barn", FARM), "lamb": ("barn", FARM), "goat": ("barn", FARM), "hen": ("nest", FARM),
    "chick": ("nest", FARM), "rooster": ("barn", FARM), "donkey": ("stable", FARM), "goose": ("pond", FARM),
    "duck": ("pond", WATER), "duckling": ("pond", WATER), "frog": ("pond", WATER), "otter": ("river home", WATER),
    "beaver": ("dam", WATER), "swan": ("lake", WATER), "turtle": ("pond", WATER), "toad": ("pond", WATER),
    "fish": ("reef", SEA), "whale": ("sea", SEA), "dolphin": ("bay", SEA), "crab": ("rock pool", SEA),
    "octopus": ("cave", SEA), "seal": ("rock", SEA), "shark": ("reef", SEA), "seagull": ("nest", SEA),
    "penguin": ("snow hill", COLD), "polar bear": ("snow cave", COLD), "reindeer": ("valley", COLD),
    "elephant": ("river bank", WARM), "lion": ("cave", WARM), "tiger": ("cave", WARM), "monkey": ("tree", WARM),
    "giraffe": ("tall tree", WARM), "zebra": ("plain", WARM), "hippo": ("pool", WARM), "panda": ("bamboo wood", WARM),
    "kangaroo": ("plain", WARM), "koala": ("tree", WARM), "crocodile": ("river bank", WARM), "camel": ("tent", WARM),
}
FANTASY = {
    "dragon": ("cave", MAGIC), "unicorn": ("meadow", MAGIC), "robot": ("workshop", TOWN), "giant": ("castle", MAGIC),
    "wizard": ("tower", MAGIC), "princess": ("castle", MAGIC), "prince": ("castle", MAGIC), "king": ("castle", MAGIC),
    "queen": ("castle", MAGIC), "knight": ("castle", MAGIC), "pirate": ("ship", SEA), "fairy": ("flower", FOREST),
    "witch": ("cottage", FOREST), "mermaid": ("cave", SEA), "snowman": ("garden", COLD), "ghost": ("old house", TOWN),
    "baker": ("shop", TOWN), "farmer": ("farm", FARM), "sailor": ("boat", SEA), "painter": ("room", TOWN),
    "teacher": ("school", TOWN), "gardener": ("garden", TOWN), "doctor": ("house", TOWN), "tailor": ("shop", TOWN),
    "fisherman": ("hut", SEA), "shepherd": ("hut", FARM), "astronaut": ("house", TOWN), "clown": ("tent", TOWN),
    "miller": ("mill", FARM), "elf": ("tree house", FOREST), "monster": ("cave", MAGIC), "troll": ("bridge", MAGIC),
}
HER_ONLY = {"princess", "queen", "mermaid", "fairy", "witch", "hen", "cow"}
HIS_ONLY = {"prince", "king", "rooster", "snowman", "fisherman"}

TOYS = """ball kite doll drum boat train teddy|bear puzzle book whistle balloon bell lantern hat scarf ring
basket blanket necklace flute bicycle wagon mirror key coin button stone shell feather umbrella box cup spoon
pencil paintbrush ribbon map lamp clock jar kettle crown mitten marble spinning|top toy|car toy|ship magic|stick
music|box paper|plane story|book violin sled rope bucket compass candle""".split()
TOYS = [t.replace("|", " ") for t in TOYS]
ADJ = """red blue green yellow orange purple white golden silver tiny big small old new shiny pretty little
brown pink strange bright""".split()
FOODS = """apple pear cake cookie pie sandwich bun plum peach carrot|muffin pancake banana cheese|roll waffle
honey|cake biscuit nut|bar bread|roll strawberry|tart pumpkin|pie""".split()
FOODS = [f.replace("|", " ") for f in FOODS]
PLACES = """park|forest|garden|river|beach|market|meadow|hill|lake|field|playground|village square|library|pond
|old bridge|orchard|harbour|barn|woods""".replace("\n", "").split("|")
TREASURES = ["a little door in a tree", "a cave full of shiny stones", "a secret garden", "a tiny blue house",
             "a field of tall sunflowers", "a waterfall", "an old wooden ship", "a nest with three eggs",
             "a pool with golden fish", "a tower made of glass", "a library under the ground", "a hill made of sand",
             "a bridge made of flowers", "a room full of old toys", "a well that could sing"]
CREATURES = ["bird", "kitten", "puppy", "mouse", "beetle", "butterfly", "frog", "duckling", "bee", "snail", "lamb",
             "baby rabbit", "baby squirrel", "ladybug", "baby owl"]
GUESTS = ["kitten", "puppy", "mouse", "frog", "duckling", "lamb", "baby owl", "baby rabbit"]
FEARS = [("the dark", "At night, when the lamp went out", "turned off the lamp"),
         ("thunder", "When the sky rumbled", "listened to the thunder"),
         ("deep water", "When the others swam", "stepped into the water"),
         ("high places", "When the others climbed up the hill", "climbed to the top"),
         ("loud noises", "When the big drum boomed", "walked up to the big drum"),
         ("spiders", "When a spider came near", "looked closely at the spider"),
         ("the wind", "When the wind howled", "went out into the wind"),
         ("the old bridge", "When the path came to the old bridge", "walked across the bridge"),
         ("strangers", "When someone new came by", "said hello to someone new")]
SKILLS = ["swim", "whistle", "dance", "skate", "paint", "sing", "bake bread", "ride a bicycle", "fly a kite",
          "climb a tree", "tie a knot", "read", "juggle", "play the flute", "catch a ball", "knit a scarf",
          "row a boat", "write letters", "jump over the stream", "build a fire", "play the drum", "draw a horse"]
KIN = [("mother", "she"), ("father", "he"), ("grandmother", "she"), ("grandfather", "he"), ("mom", "she"),
       ("dad", "he"), ("grandma", "she"), ("grandpa", "he"), ("aunt", "she"), ("uncle", "he")]
PRONOUNS = {
    "she": dict(he="she", him="her", his="her", himself="herself"),
    "he": dict(he="he", him="him", his="his", himself="himself"),
    "it": dict(he="it", him="it", his="its", himself="itself"),
}

# --- the template language ---------------------------------------------------

_ALT = re.compile(r"\[([^\[\]]*)\]")
_SLOT = re.compile(r"\{([A-Za-z]+)(?:\.([A-Za-z]+))?\}")
_AN = re.compile(r"\b([Aa]) (?=[aeiouAEIOU])(?!uni|use|one\b|eu)")
# A full stop before a closing quote ends the sentence; "!" or "?" may go on with "said he".
_CAP = re.compile(r"((?:^|[.!?] |\n)\"?|\.\" )([a-z])")


def render(rng, template, ctx):
    """Resolve alternatives, then slots, then `a`/`an` and capitals."""
    while True:
        template, n = _ALT.subn(lambda m: rng.choice(m.group(1).split("|")), template)
        if not n:
            break

    def slot(m):
        value = ctx[m.group(1)]
        part = m.group(2)
        if isinstance(value, Who):
            return value.part(rng, part)
        return value[0].upper() + value[1:] if part == "Cap" else value

    text = _SLOT.sub(slot, template)
    text = _AN.sub(lambda m: m.group(1) + "n ", text)
    text = re.sub(r" {2,}", " ", text).strip()
    return _CAP.sub(lambda m: m.group(1) + m.group(2).upper(), text)


LARGE = {"king", "queen", "giant", "whale", "elephant"}


class Who:
    """A character: how to introduce it, how to call it, which pronouns it takes."""

    def __init__(self, kind, name, sex, home, haunts, alone_of_kind=True):
        self.kind, self.name, self.sex = kind, name, sex
        self.home, self.haunts = home, haunts
        self.alone_of_kind = alone_of_kind
        self.is_child = kind in ("girl", "boy")
        self.adj = None  # set when a reader asked for a "brave" or a "lazy" one

    def call(self, rng):
        if self.name is None:
            return "the " + self.kind
        if LESSON == 1:
            if self.alone_of_kind and rng.random() < (0.1 if self.is_child else 0.25):
                words = ["the ", "the ", "the little "]
                return (rng.choice(words) if self.kind not in LARGE else "the ") + self.kind
            return self.name
        # A second word for an animal keeps its name from ringing in every line. Children are
        # always called by name: with "the girl" and "the boy" a small model soon mixes them up.
        if self.alone_of_kind and not self.is_child and rng.random() < 0.15:
            return "the " + self.kind
        return self.name

    def part(self, rng, part):
        if part is None:
            return self.call(rng)
        if part == "name":
            return self.name or "the " + self.kind
        if part == "intro":
            adj = rng.choice(["little ", "small ", "young ", "", "", "kind ", "clever ", "cheerful ", "curious ",
                              "shy ", "brave ", "quiet ", "friendly ", "happy ", "gentle "])
            adj = self.adj or adj
            if self.name is None:
                return f"a {adj}{self.kind}"
            return rng.choice([f"a {adj}{self.kind} named {self.name}", f"a {adj}{self.kind} called {self.name}",
                               f"a {adj}{self.kind} named {self.name}"])
        if part == "plain":
            return f"a {self.adj or rng.choice(['little', 'young', 'kind', 'brave', 'happy', 'curious'])} {self.kind}"
        if part in ("home", "kind"):
            return getattr(self, part)
        if part == "haunt":
            return rng.choice(self.haunts)
        low = PRONOUNS[self.sex][part.lower()]
        return low.capitalize() if part[0].isupper() else low


def make_who(rng, kind=None, name=None, avoid=(), named=None):
    """A character whose kind, name and (mostly) sex differ from those in `avoid`."""
    taken_kinds = {w.kind for w in avoid}
    taken_names = {w.name for w in avoid}
    if kind is None:
        pick = rng.random()
        pool = (["girl", "boy"] if pick < 0.45 else list(ANIMALS) if pick < 0.88 else list(FANTASY))
        pool = [k for k in pool if k not in taken_kinds] or list(ANIMALS)
        kind = rng.choice(pool)
    sex = rng.choice(["he", "she"])
    if avoid and rng.random() < 0.75:
        sex = "he" if avoid[0].sex == "she" else "she"
    if kind in HER_ONLY or kind == "girl":
        sex = "she"
    if kind in HIS_ONLY or kind == "boy":
        sex = "he"
    home, haunts = ANIMALS.get(kind) or FANTASY.get(kind) or (None, None)
    if home is None:
        home, haunts = ("house", TOWN) if kind in ("girl", "boy") else ("home", TOWN + FOREST)
    if named is None:
        named = kind in ("girl", "boy") or rng.random() < 0.8
    if named and name is None:
        people = GIRLS if sex == "she" else BOYS
        pool = people if kind in ("girl", "boy") or rng.random() < 0.3 else PETS
        name = rng.choice([n for n in pool if n not in taken_names])
    return Who(kind, name, sex, home, haunts, kind not in taken_kinds)


# --- openings and endings ----------------------------------------------------

OPENINGS = [
    "Once upon a time, there was {A.intro}. {A.He} lived [in|near] the {haunt}.",
    "Once upon a time, there was {A.intro} who lived [near|by] the {haunt}.",
    "Once upon a time, {A.intro} lived [near|by|not far from] the {haunt}.",
    "Once upon a time, in the {haunt}, there lived {A.intro}.",
    "Once upon a time, there lived {A.intro}. {A.He} loved [to play|to sing|to explore|long walks|a good story|sunny days].",
    "There once was {A.intro}. {A.He} lived [near|by] the {haunt} with {A.his} {kin}.",
    "Long ago, [near|by] the {haunt}, there lived {A.intro}.",
    "[Far away|A long time ago], [near|by] the {haunt}, there was {A.intro}.",
    "{A.intro} lived [near|by] the {haunt}. Every morning {A.he} [looked out at the sky|went out to play|sang a little song|said good morning to the sun].",
    "In a [small|cosy|warm] {home} [near|by] the {haunt} lived {A.intro}.",
    "This is a story about {A.intro}. {A.He} lived [near|by] the {haunt}.",
    "There was {A.intro}. Everyone [near|by] the {haunt} knew {A.him}.",
    "It was a [dark|cold|quiet|stormy|clear] night [near|by] the {haunt}. {A.intro} [sat by the window|looked up at the stars|was still awake].",
    "It was a [sunny|beautiful|warm|cold|windy] [day|morning]. {A.intro} [went out to play|was on the way home|looked out of the {home}].",
    "[The little|The young|The old] {A.kind} [sat|stood] near the {haunt}. {A.His} name was {A.name}.",
    "{A.name} was {A.plain}. {A.He} lived [near|by] the {haunt} with {A.his} {kin}.",
    "{A.name} the {A.kind} lived [near|by] the {haunt}.",
    "[Deep in|In the middle of] the {haunt}, there [lived|was] {A.intro}.",
    "In a [small|quiet|faraway] [village|valley], there lived {A.intro}.",
    "Every [morning|evening|day], {A.intro} [walked|went] to the {haunt}. {A.He} [liked it there|had many friends there].",
    "Many years ago, there was {A.intro}. {A.He} lived [near|by] the {haunt}.",
    "There was once {A.intro} who [loved to sing|loved to read|wanted to see the world|had a big dream].",
]
TRAITS = [
    "", "", "",
    "{A.He} was [very kind|always curious|never bored|small but brave|a good friend to everyone|sometimes a little shy].",
    "{A.He} had [bright eyes and a warm heart|many questions and a big smile|a soft voice and quick feet].",
    "Most of all, {A.he} loved {A.his} {kin}.",
    "{A} liked [the smell of rain|the sound of the wind|warm soup|quiet evenings|stories about the sea|counting the stars].",
]
TIMES = [
    "One day", "One morning", "One sunny day", "One afternoon", "One rainy day", "One warm evening",
    "Early one morning", "One windy day", "One bright spring morning", "One cold winter day", "One summer day",
    "One autumn day", "One quiet afternoon", "On Saturday", "On Monday morning",
]
MORALS = {
    "share": ["sharing makes everything better", "a thing is twice as nice when you share it"],
    "brave": ["being brave means trying even when you are afraid", "a friend can make a big fear small"],
    "try": ["if you keep trying, you will get better", "every mistake is a step on the way"],
    "truth": ["it is always best to tell the truth", "the truth is easier to carry than a secret"],
    "kind": ["a little kindness goes a long way", "kindness always comes back"],
    "friend": ["a good friend is worth more than gold", "it is never too late to make a friend"],
    "patience": ["good things take time", "you must be patient with small seeds"],
    "listen": ["it is wise to listen", "it is good to ask before you go far"],
    "team": ["many hands make light work", "it is easier to do hard things together"],
    "wish": ["the best things are already near", "you should be careful what you wish for"],
    "look": ["you should not judge others by how they look", "a kind heart can hide behind a rough face"],
    "care": ["you should look after the things you love", "it is good to put things back in their place"],
}
# By rank: what is still day, going home, the night, what stays, the very last words.
ENDINGS = [
    ["They [laughed and played|talked and sang|sat together] until the [sun went down|stars came out|moon was high]."],
    ["{A} [smiled|laughed] and [went home|walked home|went back to the {home}]. It had been a [good|wonderful|lovely|long but happy] day.",
     "{A} was [very happy|proud and happy|glad], and so was {B}."],
    ["That night, {A} slept [well|deeply|with a smile] and dreamed of [{dream}]."],
    ["From that day on, {A} and {B} were [the best of friends|always together|good friends].",
     "{A} [learned|knew now] that {moral}.",
     "And from then on, {A} always remembered that {moral}.",
     "\"{moral.Cap},\" said {A.his} {kin}. {A} [nodded|smiled] and [knew it was true|gave {kinhim} a hug]."],
    ["And they all lived happily ever after.", "The end."],
]
# In these plots the hero is already at home, or asleep, when the last beat is over.
HOME_BY_NIGHT = {"sleep", "toofar", "lostway", "explore", "school", "rescue", "moon", "coin", "snow", "noise"}
DREAMS = ["the sea", "the stars", "a big cake", "new adventures", "flying over the hills", "a garden full of flowers",
          "a golden boat", "tomorrow", "sweet berries"]

# --- plots: name -> (moral, beats). Each beat is one or more sentences. ------

PLOTS = {
    "lost": ("care", [
        "{A} had [a {obj}|a beautiful {obj}]. It was {A.his} favourite thing in the whole world. [{A.He} took it everywhere.|{A.He} had got it from {A.his} {kin}.|{A.He} played with it every day.]",
        "{T}, the {thing} was gone. [{A} looked under the bed, but it was not there.|{A} looked everywhere, but could not find it.|\"Where is my {thing}?\" cried {A}.]",
        "{A.He} felt [very sad|worried|like crying]. [Then {A.he} went to {B.intro}.|{A.He} ran to {B.intro}.|{A.He} met {B.intro} on the path.] \"Have you seen my {thing}?\" asked {A}.",
        "\"[No, but I can help you look|Not yet, but let us look together|I have not seen it, but two can look better than one],\" said {B}.",
        "They looked [in the garden|behind the big tree|near the pond|along the path] and [under the bridge|in the tall grass|behind the fence|by the old wall]. [They asked everyone they met.|They looked high and low.|They did not give up.]",
        "At last, {B} saw something [{shine} in the grass|{shine} under a leaf|{shine} next to a stone]. \"[Look|Come here|I see it]!\" {B.he} [called|said|shouted]. It was the {thing}!",
        "{A} was so happy that {A.he} [jumped up and down|danced around|hugged {B}]. \"Thank you, {B.name}!\" {A.he} said. \"[You are a true friend|I could not have done it without you|I will be more careful now].\"",
    ]),
    "share": ("share", [
        "{T}, {A} had a {food}. It was [warm and sweet|big and tasty|the last one]. {A.He} sat down [under a tree|on a bench|by the water] to eat it.",
        "Then {B.intro} came by. {B.He} looked [tired|sad|hungry]. \"What is wrong?\" asked {A}.",
        "\"I am so hungry,\" said {B}. \"I have not eaten [all day|since yesterday|anything today].\"",
        "{A} looked at the {food}. It was [not very big|just enough for one]. {A.He} [thought for a moment|really wanted it all|felt unsure].",
        "Then {A.he} [broke it in two|cut it in half|made two pieces]. \"Here, [this half is for you|you can have some|let us share],\" {A.he} said.",
        "{B} smiled a big smile. \"Thank you! [You are very kind|Nobody has ever been so nice to me|This is the best {food} ever],\" {B.he} said. They ate together and [talked about the weather|told each other jokes|watched the clouds].",
        "[The next day|A few days later|Soon after], {B} came back with [a basket of berries|a bag of nuts|a pot of honey|fresh bread]. \"Now I have something to share with you,\" said {B}.",
    ]),
    "fear": ("brave", [
        "{A} was afraid of {fear}. {fearwhen}, {A.he} [hid behind {A.his} {kin}|closed {A.his} eyes|ran back to the {home}].",
        "{T}, {A} met {B.intro}. \"Why do you look so scared?\" {B} asked.",
        "\"I am afraid of {fear},\" {A} said in a small voice. {A.He} thought {B} would laugh.",
        "But {B} did not laugh. \"[I was afraid once, too|Everyone is afraid of something|That is all right],\" {B.he} said. \"[Hold my hand|Stay close to me|I will stay beside you], and we will try together.\"",
        "{A} took a deep breath. {A.His} heart went [thump, thump, thump|very fast|boom, boom]. [Slowly|Step by step|Very carefully], {A.he} {feardo}.",
        "Nothing bad happened! {A} opened {A.his} eyes. \"[It is not so bad|I did it|I am not scared any more]!\" {A.he} said.",
        "\"You were very brave,\" said {B}. {A} felt [tall and strong|warm inside|proud].",
    ]),
    "skill": ("try", [
        "{A} wanted to learn to {skill}. {A.He} had seen {B.intro} do it, and it looked [easy|like so much fun|wonderful].",
        "{T}, {A.he} tried for the first time. It did not go well. {A} [felt silly|wanted to stop|sat down and sighed].",
        "\"I will never learn to {skill},\" {A.he} said. [A tear ran down {A.his} cheek.|{A.He} kicked a small stone.|{A.He} looked at the ground.]",
        "{B} heard {A.him} and came over. \"[It was hard for me, too|I could not do it at first|Nobody can do it the first time],\" said {B}. \"Let me show you. Go slowly.\"",
        "So {A} tried again. And again. And again. [Every day it got a little easier.|After three days, {A.he} felt stronger.|{B} clapped each time {A.he} tried.]",
        "Then, {when}, it worked! \"Look at me!\" {A} shouted. \"I can {skill}!\"",
        "{B} [cheered|laughed with joy|clapped]. \"I knew you could do it,\" {B.he} said.",
    ]),
    "gift": ("kind", [
        "{T}, {A} remembered that it was the birthday of {A.his} friend, {B.intro}. \"[What can I give {B.him}|What would {B.he} like]?\" {A} wondered.",
        "{A} had no money, but {A.he} had [two good hands|a good idea|a lot of time]. \"I will make a {thing}!\" {A.he} said.",
        "{A.He} worked [all morning|all day|for hours]. {A.He} [found some paper and string|looked for wood and glue|used old buttons and bits of cloth]. [It was not easy|It took a long time], but {A.he} did not stop.",
        "When it was done, the {thing} was [a little crooked|not perfect|very small], and {A} was worried. \"What if {B.he} does not like it?\" {A.he} thought.",
        "{A} went to see {B} and said, \"Happy birthday, {B.name}! I made this for you.\"",
        "{B} looked at the {thing}, and {B.his} eyes [grew wide|began to shine|filled with happy tears]. \"You made this for me?\" {B.he} asked. \"[It is the best gift of all|I love it|I will keep it forever]!\"",
        "Then they ate [cake|pie|sweet buns] and [sang songs|danced|played games] together.",
    ]),
    "rescue": ("kind", [
        "{T}, {A} went for a walk to the {place}. On the way, {A.he} heard a small voice. \"Help! Help!\"",
        "It was a little {creature}. It was [stuck in the mud|caught in a bush|trapped under a branch|lying on its back]. \"Please help me,\" it said.",
        "{A} did not wait. \"[Do not worry|Do not be afraid|I am here], little one,\" {A.he} said. {A.He} [pulled|pushed|worked] as hard as {A.he} could.",
        "[At last|After a while|Finally], the {creature} was free. \"Thank you!\" it said. \"One day I will help you, too.\" {A} smiled. How could such a small {creature} help {A.him}?",
        "[A week later|Some days later|Not long after], {A} got lost in [the fog|the dark|a snow storm]. {A.He} did not know the way home. [{A.He} began to shiver.|{A.He} called, but nobody came.]",
        "Then {A.he} heard a small voice again. It was the {creature}! \"Follow me,\" it said. \"I know the way.\"",
        "The {creature} led {A} all the way back to the {home}. \"You are small,\" said {A}, \"but you are a big friend.\"",
    ]),
    "truth": ("truth", [
        "{T}, {A} was playing inside with {A.his} {thing}. {A.His} {kin} had said, \"Please be careful.\" But {A} was [running too fast|not careful|having too much fun].",
        "Crash! {A} bumped into the table, and the {vase} fell down and broke. [The room was very quiet.|There were pieces all over the floor.]",
        "{A} was scared. \"[I could hide the pieces|I could say the wind did it|Nobody saw me],\" {A.he} thought. But {A.his} tummy felt [bad|heavy|funny].",
        "{B.intro} had heard the noise and looked in. \"What will you do?\" asked {B}. \"I think I must tell the truth,\" said {A}.",
        "{A} went to {A.his} {kin} and said, \"I broke the {vase}. I am very sorry.\"",
        "{A.His} {kin} [was quiet for a moment|looked at the pieces]. Then {kinhe} gave {A} a hug. \"Thank you for telling me the truth,\" {kinhe} said. \"[A thing can be fixed|That was brave|I am proud of you].\"",
        "Together they [cleaned the floor|swept up the pieces|glued the pieces together], and {A} felt [light|much better] again.",
    ]),
    "quarrel": ("friend", [
        "{A} had a good friend, {B.intro}. They played together every day.",
        "{T}, they found a {obj} [on the path|near the {place}|under a tree]. \"It is mine!\" said {A}. \"No, I saw it first!\" said {B}.",
        "They pulled and pulled. [Snap! The {thing} broke.|The {thing} fell into the mud.|They both fell down.] {B} [began to cry|went away without a word], and {A} went home [angry|alone].",
        "At home, {A} [could not eat|did not want to play|sat by the window]. The day was long and dull without {B}. \"[A {thing} is not worth a friend|I miss {B.name}],\" {A.he} thought.",
        "So {A} went to find {B}. At the same time, {B} was coming to find {A}! They met [in the middle of the path|at the gate|on the bridge].",
        "\"I am sorry,\" said {A}. \"I am sorry, too,\" said {B}. [They both laughed.|They hugged each other.]",
        "They [fixed|cleaned] the {thing} together and took turns. [First {A} had it, and then {B}.|It was much more fun that way.]",
    ]),
    "explore": ("listen", [
        "{A} loved to explore. {T}, {A.he} [packed a small bag|put on {A.his} hat|took a lamp and some bread] and went to the {place}.",
        "On the way {A.he} met {B.intro}. \"Where are you going?\" asked {B}. \"I want to see what is behind the {place},\" said {A}. \"May I come with you?\" asked {B}.",
        "They walked [over a hill|through tall grass|along a narrow path] and [across a stream|under a big rock|past an old wall]. [The birds sang above them.|The sun was warm on their backs.|It was very quiet.]",
        "Suddenly, {A} stopped. \"Look!\" {A.he} whispered. There, in front of them, was {treasure}.",
        "\"[It is beautiful|I have never seen anything like it|Is it real]!\" said {B}. They went closer, step by step. [Nothing moved.|It smelled of flowers.|A soft light was all around.]",
        "They stayed there [for a long time|until the sun was low] and [looked at everything|played and laughed|listened to the quiet]. \"Let this be our secret,\" said {A}.",
        "When it grew [dark|late], they walked home [hand in hand|side by side]. {A.His} {kin} was waiting with [hot soup|warm milk|a lamp in the window]. \"[Did you have a nice day|Where have you been]?\" asked {A.his} {kin}. {A} only smiled.",
    ]),
    "seed": ("patience", [
        "{T}, {A} got a small seed from {B.intro}. \"Plant it and wait,\" said {B}. \"Something good will come.\"",
        "{A} put the seed in the ground and gave it water. Then {A.he} sat down to watch. Nothing happened.",
        "The next day, {A.he} looked again. Still nothing! \"[It is broken|It does not work|Why is it so slow]!\" said {A}.",
        "\"Give it time,\" said {B}. \"A seed works in the dark, where you cannot see it.\"",
        "So {A} waited. [Rain came, and sun came.|The days went by.] {A.He} gave the seed water every [morning|evening] and [sang to it|told it stories|kept the weeds away].",
        "Then, {when}, a tiny green leaf came up! {A} [danced|shouted for joy|called {B}]. \"It is growing! It is growing!\"",
        "By the end of summer, there was [a tall sunflower|a little apple tree|a bush full of berries|a huge pumpkin|a red rose], and {A} [showed it to everyone|was very proud].",
    ]),
    "newfriend": ("friend", [
        "{A} was often alone. [{A.He} had no one to play with.|{A.He} wished for a friend.] {T}, {A.he} went to the {place}.",
        "There {A.he} saw {B.intro}. {B} was sitting [all alone|under a tree|on a stone] and [looked sad|drew lines in the sand|hummed a song].",
        "{A} wanted to say hello, but {A.he} was shy. {A.He} took a deep breath. \"Hello,\" {A.he} said. \"My name is {A.name}. [Do you want to play|May I sit with you]?\"",
        "{B} looked up and smiled. \"[Yes, please|I would love to|I was hoping you would ask]! I am {B.name}. [I am new here|I do not know anyone here yet].\"",
        "They played [hide and seek|catch|with a {obj}|pirates] and [ran races|climbed trees|made a castle of sand|rolled down the hill]. They laughed so much that [their tummies hurt|the birds flew away].",
        "When the sun began to set, {B} said, \"[Will you come back tomorrow|Can we play again]?\" \"Of course!\" said {A}.",
        "{A} [skipped|ran|danced] all the way home. \"I have a friend!\" {A.he} told {A.his} {kin}.",
    ]),
    "wish": ("wish", [
        "{T}, {A} found a {obj} [in the sand|in the grass|in an old box]. When {A.he} touched it, a [tiny|soft|kind] voice said, \"I can give you one wish.\"",
        "{A} thought and thought. \"I wish for [a mountain of cake|all the toys in the world|a house full of gold|a day that never ends]!\" {A.he} said. Whoosh! The wish came true.",
        "At first, it was wonderful. {A} [laughed and clapped|could not believe it]. But soon {A.he} [felt tired|felt lonely|had enough of it].",
        "{B.intro} came by, but there was no room and no time to play. {B} went away. {A} felt sad. \"What good is it without a friend?\" {A.he} said.",
        "{A.He} held the {thing} again. \"Please, [take it all back|make it like before],\" {A.he} whispered. Whoosh! Everything was as it had been.",
        "{A} ran to find {B}. \"[Do you still want to play|Come and play with me]?\" {A.he} asked. \"Yes!\" said {B}.",
    ]),
    "rain": ("team", [
        "{T}, it rained and rained. {A} looked out of the window. \"[I am so bored|There is nothing to do|I wanted to go out and play],\" {A.he} said.",
        "Then there was a knock at the door. It was {B.intro}, and {B.he} was [all wet|dripping]. \"Come in!\" said {A}. [They hung up the wet coat.|{A} gave {B.him} a towel.]",
        "\"I have an idea,\" said {B}. \"Let us build a [fort|ship|castle|cave]!\" They took [blankets and pillows|chairs and sheets|boxes and rope] and began.",
        "[{A} was the captain.|{B} was the captain.] They sailed over the sea, met [a sleepy whale|a funny pirate|a singing mermaid], and found [an island of sweets|a chest of gold|a land of clouds].",
        "{A.His} {kin} brought them [hot chocolate|warm soup|cookies and milk]. \"Thank you!\" they said with full mouths.",
        "When they looked up, the rain had stopped. There was a rainbow [over the {place}|in the sky]. \"Do you want to go out?\" asked {B}. \"[Not yet|In a minute],\" said {A}. \"[This is too much fun|Our adventure is not over]!\"",
    ]),
    "race": ("kind", [
        "{T}, there was a big race at the {place}. {A} wanted to win. {A.He} had [practised every day|run up and down the hill all week|thought of nothing else].",
        "\"Ready, steady, go!\" Everyone ran. {A} was fast. {A.He} was first [at the big tree|at the bridge|at the first turn]!",
        "Then {A} heard a cry. {B.intro} had fallen and hurt {B.his} [leg|foot|knee]. All the others ran past.",
        "{A} looked at the finish. It was so near! {A.He} looked back at {B}. Then {A.he} turned around. \"[Lean on me|Let me help you|Take my hand],\" {A.he} said.",
        "Together they walked, slowly, step by step. They came in last. But everyone [clapped and cheered|stood up and cheered]!",
        "\"[You did not win the race|You came last], but you won our hearts,\" said the [judge|old owl|mayor], and gave {A} a [golden|blue|shiny] ribbon.",
        "\"Half of it is yours,\" {A} said to {B}. They [laughed and went home together|wore it in turns].",
    ]),
    "coin": ("kind", [
        "{T}, {A} had one coin. {A.He} wanted to buy a {obj} at the market. {A.He} had saved for [a long time|many weeks].",
        "At the market there were [so many things|apples and hats and toys|bright colours everywhere]. {A} found the {thing} and smiled. It was just right.",
        "But next to the shop sat {B.intro}. {B.He} was [cold|crying|very thin]. \"What happened?\" asked {A}. \"I lost my money, and I cannot buy [bread|food] for my family,\" said {B}.",
        "{A} looked at the {thing}. {A.He} looked at the coin. Then {A.he} gave the coin to {B}. \"Here,\" {A.he} said, \"you need it more than I do.\"",
        "{B} thanked {A.him} [again and again|with tears in {B.his} eyes]. {A} went home without the {thing}, but {A.he} felt [warm inside|happy].",
        "[The next week|Some days later], there was a box at the door. Inside was the {thing}! A note said: \"For a kind heart. From {B.name}.\"",
    ]),
    "toofar": ("listen", [
        "\"Do not go past the {place} alone,\" said the {kin} of {A}. \"I will not,\" said {A}.",
        "But {T.low}, {A} saw a [blue butterfly|shiny dragonfly|little red bird]. It was so pretty! {A} ran after it, [over the hill|through the bushes|along the stream], farther and farther.",
        "When {A.he} stopped, nothing looked the same. {A.He} had gone past the {place}. [It began to get dark.|The wind was cold.] \"Where am I?\" whispered {A}.",
        "{A.He} wanted to run, but {A.his} foot was stuck [in a hole|between two stones|under a root]. \"Help!\" {A.he} cried.",
        "{B.intro} was on the way home and heard the cry. \"Hold still,\" said {B}, and [pulled|dug|pushed] until {A} was free. \"Come, I will take you home.\"",
        "{A.His} {kin} was waiting at the door, very worried. \"I am sorry,\" said {A}. \"I should have listened.\" {A.His} {kin} held {A.him} close. \"I am glad that you are safe,\" {kinhe} said.",
    ]),
    "build": ("team", [
        "{A} wanted to build a [tree house|raft|small bridge|big swing|snow house]. {T}, {A.he} [began to work|took a hammer and some wood|made a plan].",
        "It was hard to do alone. The [wood|first piece] was too heavy. It fell down once, twice, three times. {A} was [tired|cross|ready to give up].",
        "{B.intro} watched from [far away|behind a tree]. \"May I help?\" {B.he} asked. \"No, I want to do it all by myself,\" said {A}.",
        "But the next piece was even heavier. {A} sighed. \"All right,\" {A.he} said. \"Please help me. [I cannot do it alone|I was wrong].\"",
        "So {A} held, and {B} tied the rope. {B} pulled, and {A} pushed. [They sang while they worked.|They made each other laugh.] Soon it was almost done.",
        "When the sun went down, it was finished. It was [strong and fine|better than {A} had hoped|a bit crooked, but it held]. \"We made it!\" they shouted.",
        "They sat on top of their work and ate [apples|bread and cheese|berries].",
    ]),
    "lostway": ("friend", [
        "{T}, {A} went to pick [berries|flowers|mushrooms|nuts] near the {place}. {A.He} looked only at the ground, and did not see how far {A.he} went.",
        "When the basket was full, {A} looked up. [All the trees looked the same.|There was no path.] \"Oh no,\" {A.he} said. \"I am lost.\"",
        "{A.He} sat down [on a log|on a stone] and [tried not to cry|listened]. [An owl called.|The wind moved in the leaves.|It was almost night.]",
        "\"Who is there?\" said a voice. It was {B.intro}. \"I am lost,\" said {A}. \"I want to go home.\"",
        "\"I know these paths well,\" said {B}. \"[Look at that bright star|Listen to the river]. It shows the way. Come with me.\"",
        "They walked together in the [moonlight|soft evening light]. {B} told [funny stories|stories about the stars], and soon {A} was not afraid any more.",
        "Then {A} saw the light of the {home}. \"There it is!\" {A.he} cried. {A.He} gave {B} [half of the basket|a big hug|the best of what {A.he} had found].",
    ]),
    "sleep": ("friend", [
        "It was late, but {A} could not sleep. {A.He} turned to the left. {A.He} turned to the right. [The moon shone in.|The house was quiet.]",
        "\"I will count [sheep|stars],\" {A} said. \"One, two, three, four, five.\" But it did not help.",
        "{A} got up and looked outside. There was {B.intro}, who could not sleep either. \"Hello,\" whispered {A}. \"Hello,\" whispered {B}.",
        "They sat side by side and looked at the [moon|stars]. \"What do you think about when you are awake?\" asked {B}. \"About {dream},\" said {A}.",
        "{B} began to hum a [soft|slow|quiet] song. It was about [the sea|the wind|a little boat]. {A.name} listened. {A.His} eyes grew heavy.",
        "{A} yawned, and {B} yawned. \"Good night,\" said {B}. \"Good night,\" said {A}. And soon they were both fast asleep.",
    ]),
    "noise": ("brave", [
        "{T}, {A} heard a strange noise. [Scratch, scratch!|Tap, tap, tap!|Hoo, hoo!|Squeak, squeak!] It came from [the roof|behind the door|under the stairs|the old barn].",
        "\"[Is it a monster|What can it be|Who is there]?\" {A} whispered. {A.He} [hid under the blanket|stood very still|held {A.his} breath].",
        "{A.He} ran to {B.intro}. \"There is something [terrible|strange] over there,\" {A.he} said. \"Let us go and look,\" said {B}. \"[We are two|I will bring a lamp].\"",
        "They went on tiptoe, closer and closer. The noise grew louder. {A} [held up the lamp|opened the door a tiny bit|looked around the corner].",
        "And what did they see? It was only a little {guest}! It was [cold|hungry|lost] and wanted to come in.",
        "{A} laughed. \"You gave us a fright!\" {A.he} said. They gave the {guest} [some milk|a warm bed|something to eat].",
        "After that, {A} was not afraid of strange noises. {A.He} [always went to look|thought of the little {guest}].",
    ]),
    "soup": ("share", [
        "{T}, {A} wanted to make soup. {A.He} had a pot and water, but nothing to put in it.",
        "{A} knocked at the door of {B.intro}. \"I am making soup,\" {A.he} said, \"but I have nothing to put in it.\" \"I have [two carrots|an onion|some beans],\" said {B}, \"but no pot.\"",
        "\"Then let us cook together!\" said {A}. They put everything in the pot. [It began to smell good.|They stirred and stirred.]",
        "Soon a neighbour came by. \"What smells so good?\" [he|she] asked. \"I have [some potatoes|a bit of cheese|fresh bread].\" \"Come in!\" they said.",
        "One by one, others came, too. Everyone brought [something small|a little something]. The soup grew [thick|rich] and tasty.",
        "In the evening they all sat around one long table and ate. \"This is the best soup [in the world|I have ever had],\" said {A}. \"That is because we all made it,\" said {B}.",
    ]),
    "snow": ("friend", [
        "One winter morning, {A} looked out and everything was white. \"Snow!\" {A.he} [shouted|cried]. {A.He} ran outside at once.",
        "{B.intro} was there already. They threw snowballs and [made angels in the snow|slid down the hill|caught snowflakes].",
        "\"Let us make a snowman!\" said {A}. They rolled a big ball, a middle ball and a small ball. They used [stones|buttons|nuts] for the eyes and a carrot for the nose.",
        "The snowman looked cold, so {A} gave it {A.his} [scarf|hat]. \"Now it is one of us,\" said {B}.",
        "In the evening, the two friends drank [hot chocolate|warm tea|hot soup] and waved to the snowman through the window. [They thought it waved back.|It seemed to smile.]",
        "When spring came, the snowman was gone. There was only the [scarf|hat] on the wet grass. {A} was sad. \"Do not be sad,\" said {B}. \"Next winter, we will make it again.\"",
    ]),
    "greedy": ("share", [
        "{T}, {A} found a bush full of sweet berries near the {place}. \"All for me!\" {A.he} said.",
        "{B.intro} came by. \"May I have some berries?\" asked {B}. \"No,\" said {A}. \"I found them. They are mine.\" {B} went away with an empty basket.",
        "{A} ate and ate. {A.He} ate until the bush was empty. Then {A.he} held {A.his} tummy. \"Oh, it hurts!\" {A.he} [cried|moaned].",
        "{B} heard {A.him} and came back. {B.He} was not angry. {B.He} made [warm tea|a cup of mint tea] and sat beside {A} until the pain was gone.",
        "\"Why are you so nice to me?\" asked {A}. \"I was not nice to you.\" \"Because you needed help,\" said {B}.",
        "{A} felt [sorry|ashamed]. The next time {A.he} found berries, {A.he} called {B} first. \"[Half for you, half for me|Come and eat with me],\" {A.he} said.",
    ]),
    "baby": ("kind", [
        "{T}, {A} found a little {creature} near the {place}. It was all alone. \"Where is your mother?\" asked {A}. \"I do not know,\" it said, and it began to cry.",
        "\"Do not cry,\" said {A}. \"I will help you find her.\" {A.He} gave it [some water|a bit of bread|a soft pat].",
        "First they asked {B.intro}. \"Have you seen the mother of this little one?\" \"[I saw someone near the big tree|I heard someone call by the water|Try the other side of the hill],\" said {B}. \"I will come with you.\"",
        "So all three went on. They called, \"Hello! Hello!\" [Nobody answered.|Only the wind answered.] They [went around the pond|climbed the hill|crossed the field] and called again.",
        "Then they heard a happy cry. It was the mother! She ran to her little one and held it close. \"I looked for you everywhere,\" she said.",
        "\"Thank you,\" said the mother to {A} and {B}. \"[You have big hearts|I will never forget this|You are always welcome with us].\"",
    ]),
    "misjudged": ("look", [
        "{A} was [very big and had a loud voice|not like the others|a bit strange]. Everyone ran away when {A.he} came. \"{A.He} looks [scary|mean],\" they said. But {A} was very [gentle|kind].",
        "{A} felt lonely. {A.He} [sat by the {place} and sighed|talked to the moon at night|grew flowers all by {A.himself}].",
        "{T}, there was a [flood|fire|great storm] in the village. {B.intro} was in danger [on a roof|in the water|under a fallen tree] and could not get away. \"Help!\" cried {B}.",
        "Everyone was afraid to go. But {A} [ran|came] as fast as {A.he} could. {A.He} lifted {B} up and carried {B.him} to a safe place.",
        "\"You saved me,\" said {B}. \"And I was afraid of you. I am sorry.\" \"That is all right,\" said {A} [softly|with a smile].",
        "The whole village came to say thank you. They made a big [party|dinner], and {A} sat in the middle. {A.He} was never lonely again.",
    ]),
    "music": ("team", [
        "{T}, {A} found an old [drum|flute|guitar|violin] in the {attic}. {A.He} tried to play it. It sounded [terrible|funny|like a sick goose].",
        "\"Please stop!\" said the neighbours. {A} was sad. {A.He} went to the {place} to play alone.",
        "There {A.he} met {B.intro}, who was singing. {B} sang too high, and {A} played too loud. But together, it was not so bad!",
        "They played every day. [{A} learned to play softly.|They listened to each other.] Others came and joined in. One had a bell, and one had [two spoons|a whistle|a horn].",
        "At the summer party, they all played for the village. {A} was nervous. {A.His} hands shook. \"Just look at me,\" whispered {B}.",
        "They played, and everyone began to [dance|clap|sing]. The same neighbours shouted, \"More! More!\" {A} [bowed|laughed|smiled from ear to ear].",
    ]),
    "bottle": ("friend", [
        "{T}, {A} walked along the beach and found a bottle in the sand. There was a letter in it! It said: \"[I live on a small island|I live on the other side of the sea]. Will you be my friend? {B.name}.\"",
        "{A} read it twice. \"Who is {B.name}?\" {A.he} wondered. {A.He} wrote back: \"Yes, I will. My name is {A.name}. [What do you like to do|What can you see from your window]?\" Then {A.he} threw the bottle into the waves.",
        "{A} waited for [many days|a week|a long time]. Every morning {A.he} went to look. There was nothing but [sand|foam|shells].",
        "Then, {when}, the bottle was back! The letter said: \"I like to [swim|sing|look at the clouds]. I can see [the whole sea|a lighthouse|dolphins]. I will come to visit you.\"",
        "Soon a little boat came over the water. In it sat {B.intro}. \"Hello, {A.name}!\" {B.he} called. \"Hello, {B.name}!\" called {A}.",
        "They [built a castle of sand|looked for shells|swam in the waves] and talked as if they had always known each other.",
    ]),
    "school": ("brave", [
        "It was the first day of school, and {A} was [nervous|a bit scared]. \"What if nobody likes me?\" {A.he} asked. \"[Just be yourself|Be kind, and you will find friends],\" said {A.his} {kin}.",
        "At school there were so many new faces. {A} sat down in the last row and looked at {A.his} [shoes|hands].",
        "At lunch, {A} saw {B.intro}. {B} had dropped {B.his} lunch, and it was all over the floor. Some of the others laughed.",
        "{A} did not laugh. {A.He} helped {B} clean up and said, \"You can have half of my {food}.\"",
        "\"Thank you,\" said {B}. \"I was scared today. It is my first day.\" \"Mine, too!\" said {A}. They both began to laugh.",
        "After lunch, they [sat together|painted a picture|read a book together]. The teacher said, \"[What good friends you are|Well done]!\"",
        "\"How was school?\" asked {A.his} {kin} in the evening. \"Can I go again tomorrow?\" asked {A}.",
    ]),
    "sick": ("kind", [
        "{T}, {A} waited for {A.his} friend, {B.intro}, but {B.he} did not come. {A} went to see {B.him}. {B} was in bed with a [cold|fever|sore throat].",
        "\"I cannot go to the party,\" said {B}, and {B.his} voice was sad. \"[I will miss everything|Go without me].\"",
        "{A} thought about it on the way home. A party without {B} was not a real party. Then {A.he} had an idea.",
        "{A} told all the friends. They brought [soup|flowers|a cake|paper stars] and [a {obj}|balloons|a big card] and went to {B} together.",
        "\"Surprise!\" they said softly, because {B} was still ill. {B} could not believe it. \"You brought the party to me!\" {B.he} said.",
        "They sang [quietly|a funny song] and told stories. [A few days later|Soon], {B} was well again. \"Good friends are the best medicine,\" {B.he} said.",
    ]),
    "moon": ("wish", [
        "{A} looked at the moon every night. \"I want to go there,\" {A.he} said. {T}, {A.he} told {B.intro} about it. \"Then let us build a rocket!\" said {B}.",
        "They used [a big box|an old bath tub|a barrel] and [paint|a lot of tape|tin cans]. \"Five, four, three, two, one, go!\" they shouted. Whoosh! Up they went.",
        "They flew past the clouds and past the [stars|birds|planes]. [The earth looked small and blue.|Everything was quiet and dark.]",
        "On the moon they [jumped very high|made footprints in the dust|found a shiny stone]. A tiny moon [rabbit|mouse|man] came out of a hole. \"Welcome!\" it said. \"Nobody ever visits me.\"",
        "They drank [moon tea|star juice] and told stories. But after a while, {A} looked at the earth and felt a little sad. \"I miss my {kin},\" {A.he} said.",
        "So they said goodbye and flew home. They landed [in the garden|in a pile of leaves|next to the pond]. \"The moon is wonderful,\" said {A}, \"but home is the best place of all.\"",
    ]),
    "bridge": ("team", [
        "There was a small bridge near the {haunt}. {A} crossed it every day. {T}, after a storm, the bridge was broken.",
        "\"How will we get to the other side?\" asked {B.intro}. [Everyone stood around and talked.|Nobody knew what to do.]",
        "\"We can fix it,\" said {A}. Some of them laughed. \"You are too small,\" they said. But {A} began to carry [wood|stones], one piece at a time.",
        "{B} saw this and began to help. Then one more came, and one more. [The big ones carried logs.|The little ones carried nails.] They worked until it was dark.",
        "The next morning, the bridge was whole again. It was [even stronger than before|painted red and yellow|wide enough for two].",
        "\"Let us call it the Bridge of {A.name},\" said {B}. {A} shook {A.his} head. \"[It is everyone's bridge|We all made it],\" {A.he} said.",
    ]),
    "cake": ("try", [
        "{T}, {A} wanted to bake a cake for {A.his} {kin}. {A.He} asked {B.intro} to help.",
        "They mixed [flour, eggs and sugar|flour, milk and honey]. There was flour on the table, on the floor and on {A.his} nose. They laughed.",
        "Then they [talked and played|went outside to play] and forgot about the cake. [Black smoke came out of the oven.|What was that smell?] The cake was burnt!",
        "{A} felt terrible. \"Now there is no cake,\" {A.he} said. \"We can make another one,\" said {B}. \"This time we will watch it.\"",
        "So they began again. They sat in front of the oven and did not move. [Ding!|After an hour,] the cake was done. It was [golden|soft] and smelled [sweet|wonderful].",
        "{A.His} {kin} took a bite. \"[This is delicious|What a surprise|This is the best cake I have ever had]!\" {kinhe} said.",
    ]),
}
OBJECT_PLOTS = ["lost", "quarrel", "wish", "coin", "gift"]
THEMES = {
    "friendship": ["newfriend", "quarrel", "bottle"], "sharing": ["share", "soup", "greedy"],
    "being brave": ["fear", "noise"], "courage": ["fear", "noise", "school"], "telling the truth": ["truth"],
    "honesty": ["truth"], "patience": ["seed"], "kindness": ["rescue", "coin", "race", "sick"],
    "the sea": ["bottle"], "the beach": ["bottle"], "snow": ["snow"], "winter": ["snow"], "the rain": ["rain"],
    "magic": ["wish"], "a wish": ["wish"], "school": ["school"], "the moon": ["moon"], "space": ["moon"],
    "a rocket": ["moon"], "a race": ["race"], "music": ["music"], "working together": ["build", "bridge", "soup"],
    "a birthday": ["gift"], "an adventure": ["explore"], "getting lost": ["lostway", "toofar"],
    "a garden": ["seed"], "bedtime": ["sleep"], "a cake": ["cake"], "learning something new": ["skill"],
    "never giving up": ["skill", "cake"], "a bridge": ["bridge"], "soup": ["soup"],
}


class Story:
    """One story: the text, and what was put in (for questions about it)."""

    def __init__(self, rng, main=None, friend=None, plot=None, obj=None, name=None, opening=True, named=None):
        self.rng = rng
        self.A = main or make_who(rng, name=name, named=named)
        self.B = friend or make_who(rng, avoid=[self.A])
        self.A.alone_of_kind = self.B.alone_of_kind = self.A.kind != self.B.kind
        if plot in ("bottle", "coin", "newfriend") and self.B.name is None:
            self.B.name = rng.choice(PETS)
        if self.A.name is None and plot in ("bottle", "newfriend", "bridge"):
            self.A.name = rng.choice([n for n in PETS if n != self.B.name])
        self.plot = plot or rng.choice([p for p in PLOTS if p != "moon" or rng.random() < 0.6])
        # A nameless hero cannot sign a letter: choose again.
        if self.plot in ("bottle", "newfriend", "bridge", "coin", "gift"):
            for who, other in ((self.A, self.B), (self.B, self.A)):
                if who.name is None:
                    who.name = rng.choice([n for n in PETS if n != other.name])
        if obj is None:
            thing = rng.choice(TOYS)
            obj = f"{rng.choice(ADJ)} {thing}" if rng.random() < 0.8 else thing
        else:
            thing = obj.split(" ")[-1] if obj not in TOYS else obj
            for t in TOYS:
                if obj.endswith(t) and len(t) > len(thing):
                    thing = t
        self.obj, self.thing = obj, thing
        self.place = rng.choice(PLACES)
        self.food = rng.choice(FOODS)
        self.with_opening = opening

    def context(self):
        rng = self.rng
        moral, _ = PLOTS[self.plot]
        kin, kinsex = rng.choice(KIN)
        fear, fearwhen, feardo = rng.choice(FEARS)
        time = rng.choice(TIMES)
        return dict(
            A=self.A, B=self.B, obj=self.obj, thing=self.thing, place=self.place, food=self.food,
            haunt=rng.choice(self.A.haunts), home=self.A.home, kin=kin, kinhe=kinsex,
            kinhim=PRONOUNS[kinsex]["him"], fear=fear, fearwhen=fearwhen, feardo=feardo,
            skill=rng.choice(SKILLS), creature=rng.choice([c for c in CREATURES if c not in (self.A.kind, self.B.kind)]),
            treasure=rng.choice(TREASURES), T=time, vase=rng.choice(["vase", "blue cup", "lamp", "plate", "pot", "clock", "mirror"]),
            shine=rng.choice(["shining", "hidden", "lying"]), dream=rng.choice(DREAMS),
            guest=rng.choice([g for g in GUESTS if g not in (self.A.kind, self.B.kind)]),
            moral=rng.choice(MORALS[moral]), attic=rng.choice(["attic", "barn", "cellar", "garden shed", "old house"]),
            when=rng.choice(["one morning", "one fine day", "on a Sunday", "after a week", "when nobody expected it"]),
        )

    def pick_endings(self, length):
        """One or two closing lines in the order of the day, never two of a sort."""
        rng = self.rng
        ranks = [0, 1, 1] if self.plot not in HOME_BY_NIGHT else []
        ranks += [2, 3, 3, 3, 4, 4]
        n = 1 if length == "short" or rng.random() < 0.35 else 2
        picked = sorted(rng.sample(ranks, n))
        if n == 2 and picked[0] == picked[1]:
            picked.pop()
        return [rng.choice(ENDINGS[r]) for r in picked]

    def text(self, length="normal"):
        rng = self.rng
        ctx = self.context()
        beats = list(PLOTS[self.plot][1])
        low = ctx["T"][0].lower() + ctx["T"][1:]
        if low.startswith("on "):
            low = "on" + ctx["T"][2:]
        beats = [b.replace("{T.low}", low) for b in beats]
        parts = []
        if self.with_opening:
            # A hero without a name cannot be opened with one.
            if LESSON == 1:
                parts.append(rng.choice(OPENINGS[:6] if rng.random() < 0.55 else OPENINGS[:12]))
            else:
                usual = rng.random() < 0.5
                parts.append(rng.choice([o for o in (OPENINGS[:6] if usual else OPENINGS[6:])
                                         if self.A.name or "A.name" not in o]))
            if length == "normal":
                parts.append(rng.choice(TRAITS))
        parts += beats
        ends = self.pick_endings(length)
        parts += ends
        out = [render(rng, p, ctx) for p in parts if p]
        out = [s for s in out if s]
        if length == "short" or rng.random() < 0.45:
            return " ".join(out)
        # Break into two to four paragraphs.
        cuts = sorted(rng.sample(range(1, len(out)), k=min(len(out) - 1, rng.choice([1, 2, 2, 3]))))
        paras, last = [], 0
        for c in cuts + [len(out)]:
            paras.append(" ".join(out[last:c]))
            last = c
        return "\n\n".join(paras)


# Two heroes who know each other from the first line on.
DUO_START = [
    "{A.name} and {B.name} [were good friends|were best friends|lived next door to each other]. {T}, they went to the {place}.",
    "{A.name} and {B.name} went to the {place}.",
    "{T}, {A.name} and {B.name} went to the {place} [together|to play].",
    "{T}, {A.intro} and {B.intro} [met|played together] at the {place}.",
    "Once upon a time, there were two friends, {A.intro} and {B.intro}. {T}, they went to the {place}.",
    "Once upon a time, {A.intro} and {B.intro} lived [near|by] the {haunt}. {T}, they went to the {place}.",
]
DUO_PLOTS = {
    "duo_ball": ("kind", [
        "They played with a [red|blue|green|yellow|big|new] ball. {A} threw it to {B}, and {B} threw it back. [It was so much fun.|They laughed a lot.]",
        "Then {A} threw it too far. The ball [rolled away|fell into the water|got stuck in a tree]. \"Oh no!\" said {B}.",
        "\"I am sorry,\" said {A}. \"[I did not mean to do that|It was my fault].\" \"[It is all right|Do not worry],\" said {B}. \"We will get it back.\"",
        "They found a long stick and [pushed|pulled] as well as they could. {A} held {B}, so that {B.he} did not fall.",
        "At last, they had the ball again. \"We did it!\" they [shouted|cried].",
        "\"Next time I will not throw so hard,\" said {A}. They both laughed and played on.",
    ]),
    "duo_picnic": ("share", [
        "They wanted to have a picnic. {A} had brought a {food}, and {B} had brought [some juice|a bag of nuts|two apples].",
        "They sat down on a blanket. The sun was [warm|bright], and the birds sang.",
        "Suddenly, it began to rain! \"Quick!\" said {A}. They took everything and ran under a big tree.",
        "There sat a little {guest}. It was wet and hungry. \"You can eat with us,\" said {B}.",
        "So all three sat under the tree and ate. [The rain made a soft sound on the leaves.|They listened to the rain.]",
        "\"This is the best picnic ever,\" said {A}, and {B} thought so, too.",
    ]),
    "duo_find": ("kind", [
        "On the way, {A} saw something [{shine} in the grass|{shine} under a bush]. It was a {obj}!",
        "\"How pretty!\" said {B}. \"Can we keep it?\" \"I would like to,\" said {A}, \"but someone may miss it.\"",
        "They asked [everyone they met|at every house]. \"Is this your {thing}?\" they asked. \"No,\" said one after the other.",
        "Then they met an old woman. She looked very sad. \"I have lost my {thing},\" she said. \"It was a gift from my mother.\"",
        "{A} held out the {thing}. \"Is this it?\" {A.he} asked. The old woman began to smile. \"Yes! Thank you, you two are so kind!\"",
        "She gave them each [a cookie|an apple|a warm bun]. \"I am glad that we asked,\" said {B}.",
    ]),
    "duo_hide": ("friend", [
        "\"Let us play hide and seek,\" said {A}. \"You hide, and I will count to ten.\" {B} ran off to hide.",
        "\"One, two, three, four, five, six, seven, eight, nine, ten! I am coming!\" {A} called.",
        "{A} looked behind a [tree|wall|bush]. {B} was not there. {A} looked under a [bench|bridge|cart]. {B} was not there, either.",
        "{A} looked everywhere. It grew late, and {A.he} began to worry. \"{B.name}! Where are you?\" {A.he} called.",
        "Then {A.he} heard a soft sound. {B} had fallen asleep in the [hay|grass|leaves]! {A} laughed and woke {B.him} up.",
        "\"Did I win?\" asked {B}. \"Yes,\" said {A}, \"you did. You are the best at hiding.\"",
    ]),
    "duo_hill": ("brave", [
        "They wanted to climb to the top of the big hill. \"I am not afraid,\" said {A}. \"I am, a little,\" said {B}.",
        "They walked and walked. The path was [steep|long|full of stones]. {B} [stopped|was tired] and said, \"I cannot go on.\"",
        "\"Give me your hand,\" said {A}. \"We will go slowly, step by step.\" So they went on together.",
        "Then they came to a narrow place, and now it was {A} who was afraid. \"Do not look down,\" said {B}. \"Just look at me.\"",
        "At last, they were at the top. They could see [the whole village|the sea|all the fields and woods]. \"[It is beautiful|How small everything is]!\" said {A}.",
        "\"Without you, I would not be here,\" said {B}. \"And I would not be here without you,\" said {A}.",
    ]),
}

VIGNETTE = {
    "sentences": [
        "{A} [woke up early|got up with the sun|opened {A.his} eyes].", "The sun was [warm|bright|just coming up].",
        "{A.He} put on {A.his} [hat|coat|boots] and went out.", "{A.He} saw a {creature} [by the path|in the grass|on a branch].",
        "\"Good morning,\" said {A}.", "The {creature} [looked at {A.him}|moved a little|seemed to smile].",
        "{A} walked to the {place} and sat down.", "{A.He} ate a {food} and watched the [clouds|birds|water].",
        "{B} came by and waved.", "\"What a [fine|beautiful|lovely] day,\" said {B}.",
        "They [walked on together|talked for a while|shared the rest of the {food}].",
        "In the evening, {A} went home and told {A.his} {kin} about it.",
        "\"Tomorrow,\" thought {A}, \"I will do it again.\"",
    ],
}


def vignette(rng, main=None):
    """A short scene without a plot: an order of small events."""
    a = main or make_who(rng)
    b = make_who(rng, avoid=[a], named=True)
    s = Story(rng, main=a, friend=b)
    ctx = s.context()
    sents = VIGNETTE["sentences"]
    keep = sorted(rng.sample(range(len(sents)), k=rng.randint(6, len(sents))))
    # The creature and the friend must be introduced before they act.
    keep = [k for k in keep if not (k == 5 and 3 not in keep) and not (k in (9, 10) and 8 not in keep)
            and not (k == 10 and 7 not in keep)]
    lines = [sents[k] for k in keep]
    if lines[0].startswith("{A.H"):
        lines[0] = "{A}" + lines[0][len("{A.He}"):]
    lines = [line.replace("{B} came", "{B.intro} came") if i < 99 else line for i, line in enumerate(lines)]
    return " ".join(render(rng, line, ctx) for line in lines)


def duo(rng, first=None, second=None):
    """A story that has both of its heroes in the first line."""
    a = first or make_who(rng, named=True)
    b = second or make_who(rng, avoid=[a], named=True)
    s = Story(rng, main=a, friend=b, plot="share", opening=False)
    for who, other in ((a, b), (b, a)):
        if who.name is None:
            who.name = rng.choice([n for n in PETS if n != other.name])
    plot = rng.choice(list(DUO_PLOTS))
    moral, beats = DUO_PLOTS[plot]
    ctx = s.context()
    ctx["moral"] = rng.choice(MORALS[moral])
    parts = [rng.choice(DUO_START)] + beats + s.pick_endings("short" if rng.random() < 0.4 else "normal")
    return " ".join(render(rng, p, ctx) for p in parts)


def long_story(rng, chapters):
    """Several episodes about the same hero, so that names must be kept over a long span."""
    a = make_who(rng, named=True)
    plots = rng.sample(list(PLOTS), chapters)
    words = ["One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight"]
    out = []
    for i, plot in enumerate(plots):
        s = Story(rng, main=a, plot=plot, opening=(i == 0))
        out.append(f"Chapter {words[i]}\n\n{s.text()}")
    return "\n\n".join(out)


def raw_story(rng):
    """One story document for plain completion."""
    p = rng.random()
    if p < (0.86 if LESSON == 1 else 0.78):
        return Story(rng).text()
    if LESSON > 1 and p < 0.90:
        return duo(rng)
    if p < 0.93:
        return vignette(rng)
    # Start in the middle, so that a prompt without an introduction works, too.
    return Story(rng, main=make_who(rng, named=True), opening=False).text()


if __name__ == "__main__":
    r = random.Random(7)
    for plot in PLOTS:
        print(f"--- {plot}\n{Story(r, plot=plot).text()}\n")
    for _ in range(8):
        print(duo(r) + "\n")
        print(vignette(r) + "\n")
