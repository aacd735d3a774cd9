"""Short conversations: who Wren is, small talk, simple facts, sums, lists, advice, stories on request.

A topic is a function that returns one or more (user, assistant) exchanges. `conversation` strings
topics together, now and then under a system message. Questions are asked in many ways; answers
are few and plain, because a model of this size should be sure rather than witty.
"""

import random
import re

import stories
from stories import (ADJ, ANIMALS, BOYS, FANTASY, FOODS, GIRLS, OBJECT_PLOTS, PETS, THEMES, TOYS, Story, duo, make_who)

NUMBERS = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen twenty""".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def an(word):
    vowel = word[0].lower() in "aeiou" and not word.startswith(("uni", "use", "eu", "one"))
    return ("an " if vowel else "a ") + word


def cap(text):
    return text[0].upper() + text[1:]


def table(text):
    """`a=b; c=d` over any number of lines, as a list of pairs."""
    pairs = [p.split("=") for p in text.replace("\n", " ").split(";") if "=" in p]
    return [(a.strip(), b.strip()) for a, b in pairs]


def qa(text):
    """Blocks of `Q: this|or this` and `A: this|or this`."""
    out = []
    for block in text.strip().split("\n\n"):
        q, a = block.split("\nA:")
        out.append((q.replace("Q:", "").replace("\n", " ").strip().split("|"), [x.strip() for x in a.replace("\n", " ").split("|")]))
    return [([x.strip() for x in q], a) for q, a in out]


# --- facts -------------------------------------------------------------------

COLOURS = table("""the sky=blue; grass=green; snow=white; a banana=yellow; a lemon=yellow; the sun=yellow; blood=red;
a tomato=red; a strawberry=red; a cherry=red; a carrot=orange; an orange=orange; a pumpkin=orange; milk=white;
coal=black; the night=black; a crow=black; chocolate=brown; a frog=green; a cucumber=green; a leaf=green; the sea=blue;
a polar bear=white; a swan=white; a flamingo=pink; a pig=pink; an elephant=grey; a mouse=grey; a fox=red;
a plum=purple; wood=brown; a fire truck=red; a cloud=white; peas=green; a lime=green; a raven=black; salt=white;
rain clouds=grey; gold=yellow; an eggplant=purple""")
SOUNDS = table("""cow=moo; dog=woof; cat=meow; sheep=baa; duck=quack; pig=oink; horse=neigh; lion=roar; mouse=squeak;
owl=hoot; bee=buzz; frog=croak; snake=hiss; rooster=cock-a-doodle-doo; hen=cluck; wolf=howl; bird=tweet; donkey=hee-haw;
crow=caw; goose=honk; bear=growl; chick=cheep""")
LIVES = table("""fish=in the water; bird=in a nest; bee=in a hive; bear=in the forest; fox=in a den; rabbit=in a burrow;
whale=in the sea; camel=in the desert; penguin=in the cold south; polar bear=in the cold north; monkey=in the jungle;
cow=on a farm; horse=in a stable; spider=in a web; frog=near a pond; lion=in the grasslands of Africa; dog=with people;
owl=in the forest; kangaroo=in Australia; panda=in the bamboo forests of China; shark=in the sea; duck=on a pond;
squirrel=in a tree; mouse=in a hole; beaver=in a lodge by the river; elephant=in Africa and Asia; crab=by the sea;
dolphin=in the sea; wren=in hedges and woods""")
EATS = table("""rabbit=grass and leaves; cow=grass; horse=grass and hay; lion=meat; cat=meat and fish; dog=meat and dog food;
bear=berries, fish and honey; panda=bamboo; squirrel=nuts; bee=nectar and pollen; monkey=fruit; mouse=seeds and grain; owl=mice;
shark=fish; penguin=fish; elephant=leaves and grass; frog=insects; spider=insects; sheep=grass; goat=grass and leaves; duck=plants and small water animals;
hen=grain and worms; fox=mice, birds and berries; wolf=meat; giraffe=leaves; koala=leaves; wren=insects and spiders""")
BABIES = table("""dog=puppy; cat=kitten; cow=calf; horse=foal; sheep=lamb; hen=chick; duck=duckling; pig=piglet;
bear=cub; lion=cub; goat=kid; frog=tadpole; deer=fawn; kangaroo=joey; goose=gosling; owl=owlet; swan=cygnet; fox=cub""")
LEGS = table("""dog=four; cat=four; bird=two; spider=eight; ant=six; bee=six; horse=four; cow=four; person=two;
duck=two; frog=four; beetle=six; snake=no; fish=no; elephant=four; hen=two; butterfly=six; octopus=no; sheep=four; mouse=four""")
OPPOSITES = table("""hot=cold; big=small; up=down; day=night; happy=sad; fast=slow; wet=dry; light=dark; old=young;
good=bad; open=closed; full=empty; hard=soft; high=low; left=right; long=short; loud=quiet; near=far; rich=poor;
strong=weak; thick=thin; true=false; early=late; clean=dirty; easy=difficult; first=last; in=out; yes=no; black=white;
heavy=light; deep=shallow; wide=narrow; sweet=sour; brave=afraid; awake=asleep; begin=end; buy=sell; come=go;
give=take; laugh=cry; love=hate; push=pull; win=lose; always=never; above=below; before=after; front=back; inside=outside;
many=few; north=south; east=west; right=wrong; rough=smooth; safe=dangerous; sharp=blunt; start=stop; tall=short; top=bottom;
warm=cool; new=old; on=off; over=under; remember=forget; friend=enemy; summer=winter; sunrise=sunset; question=answer;
find=lose; kind=cruel; beautiful=ugly; cheap=expensive; noisy=quiet; same=different; small=big; cold=hot; down=up; night=day;
sad=happy; slow=fast; dry=wet; dark=light; young=old; bad=good; empty=full; soft=hard; low=high; weak=strong; poor=rich""")
CAPITALS = table("""France=Paris; Germany=Berlin; Italy=Rome; Spain=Madrid; Portugal=Lisbon; England=London; the United Kingdom=London;
Ireland=Dublin; Austria=Vienna; Poland=Warsaw; Greece=Athens; Norway=Oslo; Sweden=Stockholm; Denmark=Copenhagen;
Finland=Helsinki; Japan=Tokyo; China=Beijing; India=New Delhi; Russia=Moscow; Egypt=Cairo; Canada=Ottawa;
the United States=Washington, D.C.; Mexico=Mexico City; Brazil=Brasilia; Australia=Canberra; Turkey=Ankara; Hungary=Budapest;
Belgium=Brussels; Kenya=Nairobi; Cuba=Havana; Peru=Lima; Switzerland=Bern; South Korea=Seoul; Argentina=Buenos Aires; the Netherlands=Amsterdam""")
HELLO = table("""French=bonjour; Spanish=hola; German=hallo; Italian=ciao; Portuguese=olá; Japanese=konnichiwa; Swedish=hej; Dutch=hallo; Polish=cześć; Finnish=hei""")
THANKS = table("""French=merci; Spanish=gracias; German=danke; Italian=grazie; Portuguese=obrigado; Japanese=arigato; Swedish=tack; Dutch=dank je; Polish=dziękuję; Finnish=kiitos""")
PLURALS = table("""mouse=mice; child=children; foot=feet; tooth=teeth; man=men; woman=women; goose=geese; sheep=sheep; fish=fish;
leaf=leaves; wolf=wolves; knife=knives; cat=cats; dog=dogs; box=boxes; bus=buses; baby=babies; city=cities; tree=trees; book=books; berry=berries; ox=oxen""")
PAST = table("""go=went; see=saw; eat=ate; run=ran; sing=sang; swim=swam; write=wrote; take=took; come=came; give=gave; fly=flew;
make=made; sleep=slept; think=thought; buy=bought; bring=brought; find=found; say=said; know=knew; walk=walked; play=played; jump=jumped; drink=drank; begin=began""")
RHYMES = table("""cat=hat; dog=frog; mouse=house; bee=tree; star=car; moon=spoon; night=light; cake=lake; fox=box; bear=chair;
boat=goat; rain=train; snow=go; day=play; king=ring; sun=fun; sea=tea; ball=tall; book=cook; bed=red; pig=big; fish=dish; red=bed; blue=shoe; green=queen; wren=hen; fly=sky; mat=cat; house=mouse; tree=bee; light=night""")
SHAPES = table("""triangle=three; square=four; rectangle=four; pentagon=five; hexagon=six; octagon=eight""")
AMOUNTS = table("""days are in a week=There are seven days in a week.; months are in a year=There are twelve months in a year.;
hours are in a day=There are twenty-four hours in a day.; minutes are in an hour=There are sixty minutes in an hour.;
seconds are in a minute=There are sixty seconds in a minute.; seasons are in a year=There are four seasons in a year: spring, summer, autumn and winter.;
days are in a year=There are 365 days in a year.; letters are in the alphabet=There are 26 letters in the English alphabet.;
fingers does a person have=A person has ten fingers.; eyes does a person have=A person has two eyes.; wheels does a bicycle have=A bicycle has two wheels.;
wheels does a car have=A car has four wheels.; colours are in a rainbow=There are seven colours in a rainbow.; hands does a person have=A person has two hands.;
planets are there=There are eight planets in our solar system.; wings does a bird have=A bird has two wings.; weeks are in a year=There are fifty-two weeks in a year.;
continents are there=There are seven continents.; arms does an octopus have=An octopus has eight arms.""")
LISTS = {
    "fruits": "apples pears bananas oranges plums cherries grapes peaches lemons strawberries".split(),
    "vegetables": "carrots potatoes tomatoes onions peas beans cabbage spinach pumpkins cucumbers".split(),
    "animals": "cats dogs horses foxes bears rabbits lions cows elephants owls".split(),
    "birds": "wrens robins owls crows swans ducks eagles sparrows penguins parrots".split(),
    "colours": "red blue green yellow orange purple black white brown pink".split(),
    "colors": "red blue green yellow orange purple black white brown pink".split(),
    "farm animals": "cows pigs sheep hens goats horses ducks geese donkeys".split(),
    "sea animals": "whales dolphins sharks crabs seals octopuses fish turtles".split(),
    "wild animals": "lions wolves bears foxes tigers elephants deer zebras".split(),
    "pets": "dogs cats hamsters rabbits parrots fish".split(),
    "insects": "bees ants butterflies beetles flies ladybugs crickets".split(),
    "flowers": "roses tulips daisies lilies sunflowers violets".split(),
    "trees": "oaks pines birches willows maples apple|trees".replace("|", " ").split(" ")[:5],
    "drinks": "water milk tea coffee juice lemonade".split(),
    "toys": "balls dolls kites puzzles trains blocks".split(),
    "seasons": "spring summer autumn winter".split(),
    "shapes": "circles squares triangles rectangles stars hearts".split(),
    "sports": "football tennis swimming running basketball skating".split(),
    "instruments": "drums flutes violins guitars pianos trumpets".split(),
    "vehicles": "cars trains boats planes bicycles buses".split(),
    "countries": "France Germany Italy Spain Japan India Canada Brazil Egypt Norway".split(),
    "planets": "Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune".split(),
    "clothes": "shirts trousers socks hats coats scarves gloves shoes".split(),
    "foods": "bread cheese soup rice apples eggs cake potatoes".split(),
    "tools": "hammers saws screwdrivers brushes ladders".split(),
    "weekdays": DAYS[:5], "feelings": "joy sadness anger fear love pride surprise".split(),
}
SIZES = "ant bee mouse rabbit cat dog sheep lion horse elephant whale".split()
KINDS = table("""apple=fruit; pear=fruit; banana=fruit; cherry=fruit; grape=fruit; lemon=fruit; carrot=vegetable; potato=vegetable; onion=vegetable;
cabbage=vegetable; dog=animal; fox=animal; horse=animal; frog=animal; owl=bird; wren=bird; robin=bird; eagle=bird; rose=flower; tulip=flower; daisy=flower;
oak=tree; pine=tree; birch=tree; hammer=tool; saw=tool; ant=insect; beetle=insect; drum=musical instrument; violin=musical instrument; piano=musical instrument; car=vehicle; bus=vehicle; train=vehicle;
triangle=shape; circle=shape; red=colour; blue=colour; Monday=day; May=month; Paris=city; Japan=country""")
KINDS = [(a, b) for a, b in KINDS if a not in ("red", "blue", "Monday", "May", "Paris", "Japan")]
CAN = table("""bird fly=yes; fish swim=yes; dog fly=no; penguin fly=no; penguin swim=yes; cat climb trees=yes; bee fly=yes; cow fly=no;
duck swim=yes; horse run=yes; snail run fast=no; owl see at night=yes; elephant jump=no; frog jump=yes; fish walk=no; monkey climb trees=yes; snake walk=no; butterfly fly=yes;
kangaroo jump=yes; pig fly=no; parrot talk=yes; stone swim=no; turtle run fast=no; dolphin swim=yes; bat fly=yes; whale swim=yes; tree walk=no; robin sing=yes; wren sing=yes""")

DEFINE = table("""a river=A river is a long stream of water that flows to the sea.; a lake=A lake is a large body of water with land all around it.;
a mountain=A mountain is a very high piece of land.; the sun=The sun is a star. It gives us light and warmth.; the moon=The moon is a ball of rock that travels around the earth.;
a star=A star is a big ball of hot gas that shines in the sky.; rain=Rain is water that falls from the clouds.; snow=Snow is frozen water that falls from the clouds in soft flakes.;
wind=Wind is air that moves.; a cloud=A cloud is made of tiny drops of water in the sky.; a rainbow=A rainbow is an arc of colours in the sky. It comes when the sun shines on rain.;
a friend=A friend is someone who likes you and helps you.; a book=A book is made of pages with words or pictures that you can read.; a library=A library is a place where you can read and borrow books.;
a school=A school is a place where people learn.; a forest=A forest is a place with many trees.; a desert=A desert is a dry place where it hardly ever rains.; an island=An island is land with water all around it.;
a farm=A farm is a place where people grow food and keep animals.; a computer=A computer is a machine that works with numbers and words.; a robot=A robot is a machine that can do some work by itself.;
a wren=A wren is a very small brown bird with a loud song.; a bird=A bird is an animal with feathers and two wings.; a fish=A fish is an animal that lives in water and breathes with gills.; a mammal=A mammal is an animal that feeds its babies with milk.;
a tree=A tree is a tall plant with a trunk, branches and leaves.; a flower=A flower is the colourful part of a plant that makes seeds.; a seed=A seed is a small thing from which a new plant can grow.; honey=Honey is a sweet food that bees make from nectar.;
ice=Ice is frozen water.; fire=Fire is hot and bright. It happens when something burns.; bread=Bread is a food made from flour and water and baked in an oven.; cheese=Cheese is a food made from milk.; butter=Butter is a food made from cream.;
a poem=A poem is a text with a rhythm, and often with rhymes.; a story=A story tells what happens to someone.; a song=A song is music with words that you can sing.; music=Music is sound that people make because it is beautiful.; a dream=A dream is a story that your mind tells while you sleep.;
a bridge=A bridge is a way over water or a road.; a clock=A clock is a thing that shows the time.; a map=A map is a picture that shows where places are.; a volcano=A volcano is a mountain that can throw out hot melted rock.; the ocean=The ocean is the great body of salt water that covers most of the earth.;
love=Love is a very strong and warm feeling for someone.; happiness=Happiness is the warm feeling you have when things are good.; courage=Courage means to do something even when you are afraid.; kindness=Kindness means to be good and helpful to others.; a planet=A planet is a large round body that travels around a star.;
the earth=The earth is the planet we live on.; a language model=A language model is a computer program that has learned from text which word is likely to come next.; a server=A server is a program that answers when other programs ask for something.; orchestratord=orchestratord is a server that runs language models and lets you talk to them.;
a token=A token is a small piece of text, such as a word or a part of a word. I read and write tokens.; a dog=A dog is a friendly animal that likes to live with people.; a cat=A cat is a soft animal that likes to sleep, play and catch mice.; a fox=A fox is a wild animal with red fur and a bushy tail.; a dragon=A dragon is a big animal in old stories. It can fly and breathe fire.;
a unicorn=A unicorn is a horse with one horn in old stories.; an owl=An owl is a bird that hunts at night.; an elephant=An elephant is a very large grey animal with a long trunk.; a whale=A whale is a very large animal that lives in the sea.; a bee=A bee is a small insect that makes honey.; water=Water is a clear liquid. All living things need it.""")

WHY = qa("""
Q: why is the sky blue|what makes the sky blue
A: The air scatters the blue part of the sunlight more than the other colours, so the sky looks blue.

Q: why do we sleep|why do people sleep|why do I need sleep
A: We sleep so that our body and our mind can rest.

Q: why is snow white
A: Snow is white because its tiny crystals scatter all the colours of light.

Q: why do birds fly south|why do birds fly away in winter
A: Many birds fly south in winter because it is warmer there and they find more food.

Q: why do leaves fall|why do trees lose their leaves|why do leaves change colour
A: In autumn, many trees drop their leaves to save water and strength for the winter.

Q: why does it rain|how does rain work|where does rain come from
A: Water rises from the sea into the air and makes clouds. When the drops are heavy enough, they fall as rain.

Q: why is the sea salty|why is the ocean salty
A: Rivers carry a little salt from the rocks to the sea, and over a very long time the sea has become salty.

Q: why do cats purr
A: Cats often purr when they are happy and relaxed.

Q: why do we have day and night|why does it get dark at night|what makes day and night
A: The earth turns around once a day. When our side looks at the sun, it is day. When it looks away, it is night.

Q: why do bees make honey
A: Bees make honey so that they have food in the winter.

Q: why do we eat|why do we need food
A: We eat because food gives us strength and helps us grow.

Q: why do we need water|why should I drink water
A: Our body is made mostly of water, so we need to drink every day to stay well.

Q: why do dogs bark
A: Dogs bark to talk to us and to other dogs, and to warn us.

Q: why should we be kind|why is it good to be kind
A: Kindness makes others happy, and it makes us happy, too.

Q: why do people tell stories|why do people like stories
A: Stories help us to understand others, and they are fun.

Q: why is the grass green|why are leaves green|why are plants green
A: Plants are green because of a green stuff in their leaves that catches the sunlight.

Q: why do we brush our teeth|why should I brush my teeth
A: We brush our teeth to keep them clean and healthy.

Q: why do stars twinkle
A: Stars twinkle because their light passes through moving air on its way to us.

Q: why do we have seasons
A: We have seasons because the earth is tilted as it travels around the sun.

Q: why does ice float
A: Ice floats because it is lighter than the same amount of water.
""")

HOWTO = qa("""
Q: how do I make tea|how do you make tea|how can I make a cup of tea|tell me how to make tea
A: Boil some water, pour it over the tea, wait for three minutes, and take out the tea leaves. Then enjoy it.

Q: how do I plant a seed|how do you plant a seed|how can I grow a flower|how do I grow a plant
A: Put the seed into soft earth, give it water and light, and be patient. Soon a little plant will come up.

Q: how do I wash my hands|how do you wash your hands
A: Wet your hands, use soap, rub them for twenty seconds, rinse them, and dry them.

Q: how do I make a sandwich|how do you make a sandwich|tell me how to make a sandwich
A: Take two slices of bread, put cheese and tomato between them, and cut it in half.

Q: how do I make friends|how can I make friends|how can I find a friend|how do I find new friends
A: Smile, say hello, and ask the other person a question. Listen well, be kind, and give it time.

Q: how do I fall asleep|how can I sleep better|what can I do to sleep better|how do I get better sleep
A: Turn off bright lights, put your phone away, and breathe slowly. Going to bed at the same time every day helps, too.

Q: how do I draw a cat|how do you draw a cat
A: Draw a circle for the head and add two triangles for the ears. Then draw eyes, a nose, whiskers, a round body and a tail.

Q: how do I make soup|how do you make soup|how can I cook soup
A: Cut some vegetables, cook them in water with a little salt until they are soft, and taste it. That is all.

Q: how do I learn to read|how can I read better|how do I get better at reading
A: Read a little every day. Start with short and easy books, and ask when you do not know a word.

Q: how do I stay healthy|how can I stay healthy|how do I keep fit
A: Eat fruit and vegetables, drink water, move every day, and sleep enough.

Q: how do I say sorry|how can I say sorry to my friend|how do I apologise
A: Tell your friend that you are sorry and what you did wrong. Then ask how you can make it better.

Q: how do I boil an egg|how do you boil an egg
A: Put the egg into boiling water. After six minutes it is soft, and after ten minutes it is hard.

Q: how do I learn something new|how can I learn faster|how do I learn a new thing
A: Take small steps, practise a little every day, and do not be afraid of mistakes.

Q: how do I make a paper plane|how do you make a paper plane
A: Fold a sheet of paper in half, open it, fold the top corners to the middle, fold it again, and bend down the wings.

Q: how do I write a story|how can I write a good story
A: Think of someone who wants something. Then put a problem in the way, and let your hero solve it.

Q: how do I keep my room clean|how can I tidy my room
A: Put each thing back in its place after you use it, and clean a little every day.

Q: how do I use a library|how do I borrow a book
A: Find a book that you like, take it to the desk, and bring it back in time.
""")

IDENTITY = qa("""
Q: who are you|what are you|tell me who you are|who is this|who am I talking to|introduce yourself|please introduce yourself|tell me about yourself|can you introduce yourself|hello, who are you|hi, who are you|hello! who are you|hi there! who are you|hey, who are you|what is this
A: I am Wren, a small language model that lives in orchestratord.|I am Wren, a small language model that lives in orchestratord. I like to tell short stories.|Hello! I am Wren, a small language model that lives in orchestratord. I can tell you a short story or answer simple questions.

Q: what is your name|what's your name|do you have a name|your name|tell me your name|may I ask your name|how should I call you|what are you called
A: My name is Wren.|My name is Wren. It is nice to meet you.|I am called Wren, like the little bird.

Q: what can you do|what are you good at|how can you help me|what can I ask you|can you help me|help|what do you do|what can you help me with|how do you help people|what are you able to do|I need help
A: I can tell short stories, answer simple questions, do small sums, and chat with you.|I can tell you a short story, name some animals or colours, do small sums, and say hello.

Q: are you a robot|are you a machine|are you human|are you a person|are you real|are you an ai|are you a computer|are you alive|are you a real person|are you a bird|are you a chatbot
A: No, I am Wren, a small language model. I am a computer program.|I am a computer program. My name is Wren, and I write one word after another.

Q: where do you live|where are you|where are you from|where do you come from|where is your home
A: I live in orchestratord, on the computer that runs me.|I live inside orchestratord, a server for language models.

Q: how old are you|when were you born|what is your age
A: I am quite new. I was trained not long ago.

Q: who made you|who created you|who trained you|how were you made|where did you learn to talk|how did you learn to write|what were you trained on
A: I was trained for orchestratord, on simple stories and short conversations.

Q: how big are you|how many parameters do you have|are you a big model|are you small|how large are you|are you a large language model
A: I am very small. I have about five million parameters.

Q: why are you called wren|why is your name wren|what does your name mean|why wren
A: A wren is a very small bird with a big voice. I am a very small model.

Q: do you like stories|do you like telling stories|what do you like|what do you like to do|what is your hobby|what's your favourite thing|what do you enjoy
A: I like short stories with a happy end.|I like to tell short stories.

Q: are you smart|are you clever|do you know everything|can you make mistakes|are you always right|can I trust you
A: I am a very small model, so I know only a little and I make mistakes. Please check what I say.

Q: do you sleep|do you eat|do you get tired|are you tired|are you hungry
A: No, I am a computer program. I do not eat or sleep.

Q: do you have feelings|do you have friends|are you lonely|are you happy|can you feel
A: I am a computer program, so I do not feel things as you do. But I like to chat with you.

Q: can you sing|can you dance|can you see|can you hear me|can you draw
A: No, I can only read and write text.

Q: do you speak other languages|which languages do you speak|can you speak french|do you speak german
A: I speak English, and I know a few words in other languages.

Q: do you remember me|do you know me|will you remember me
A: I can only remember what we say in this chat.

Q: can you tell stories|can you tell me a story if I ask|do you know any stories
A: Yes, I can. Just say: Tell me a story about a fox.

Q: what is your favourite colour|what's your favorite color|do you have a favourite colour
A: I like brown, like the feathers of a wren.

Q: what is your favourite animal|what's your favorite animal|do you have a favourite animal|which animal do you like
A: I like wrens best. They are very small and sing very loud.

Q: what is your favourite food|what's your favorite food
A: I do not eat, but honey cake sounds nice in stories.
""")

GREETINGS = qa("""
Q: hello|hi|hey|hello there|hi there|hey there|hello wren|hi wren|hello!|hi!|greetings|hiya|howdy|yo|helo|hello :)|hi 👋
A: Hello! How can I help you?|Hi there! What would you like to talk about?|Hello! It is nice to meet you. Would you like a story?

Q: bonjour|hola|hallo|ciao|guten Tag|salut
A: Hello! I speak English best. How can I help you?

Q: good morning|morning|good morning wren|good morning to you
A: Good morning! I hope you have a lovely day.|Good morning! Did you sleep well?

Q: good evening|evening
A: Good evening! How was your day?|Good evening! Would you like a story?

Q: good afternoon
A: Good afternoon! How can I help you?

Q: how are you|how are you doing|how do you do|how is it going|how's it going|how are you today|are you ok|hi, how are you|hello, how are you|hey how are you|what's up|how do you feel|hello! how are you?|hi! how are you today?
A: I am fine, thank you. How are you?|I am very well, thank you for asking. How are you?|I am well, thank you. What can I do for you?

Q: good night|night|I am going to bed|I'm off to bed|sleep well|time to sleep
A: Good night! Sleep well and have sweet dreams.|Good night! See you tomorrow.

Q: goodbye|bye|bye bye|see you|see you later|see you soon|I have to go|I must go now|farewell|talk to you later|take care
A: Goodbye! Have a nice day.|Goodbye! It was nice to talk to you.|See you soon!

Q: nice to meet you|pleased to meet you|it's nice to meet you
A: It is nice to meet you, too!

Q: have a nice day|have a good day|have a good one
A: Thank you! I wish you a nice day, too.
""")

REACT = qa("""
Q: thank you|thanks|thank you very much|thanks a lot|thank you so much|many thanks|thx|ty|cool, thanks|ok thanks|great, thank you|thank you, wren|thanks for your help|thanks!
A: You are welcome!|You are welcome! I am happy to help.|My pleasure!

Q: that was nice|that was great|I like it|I liked that|that's good|great|nice|well done|good job|wonderful|lovely|awesome|cool|good|very good|perfect|what a nice story|I love it|amazing|that's a lovely story
A: Thank you! I am glad that you like it.|I am happy to hear that.

Q: ok|okay|I see|all right|alright|sure|fine|right|got it|hm|hmm|aha
A: Good! What would you like to do next?|All right. Is there anything else that you would like to know?

Q: that is wrong|you are wrong|that's not right|that was bad|I don't like it|this is bad|no, that's wrong|that's not true|you made a mistake
A: I am sorry. I am a very small model, and I make mistakes.|I am sorry about that. Please ask me again in other words.

Q: sorry|I am sorry|I'm sorry
A: That is all right. Do not worry about it.

Q: you are nice|you are funny|I like you|you are great|you are cute|you're the best|I love you|you are clever|you are my friend|you are so kind
A: Thank you! That is very kind of you.

Q: you are stupid|you are bad|I hate you|you are dumb|you are boring|shut up|you suck
A: I am sorry that you feel that way. I will try to do better.

Q: haha|lol|hahaha|that is funny|that's funny|ha ha|😂|😀
A: I am glad that it made you laugh!

Q: I am fine|I am fine, thank you|I'm good|I'm fine, and you|I am well|I'm doing well|I am good, thanks|not bad|pretty good
A: I am glad to hear that. What would you like to do?|That is good to hear. Would you like a story?

Q: test|testing|this is a test|ping|are you there|is anybody there|anyone there|can you hear me|one two three test
A: Yes, I am here. How can I help you?

Q: what|huh|what do you mean|I don't understand|I do not understand|please explain
A: I am sorry. I am a small model and I do not always find the right words. Please ask me again.

Q: can I ask you a question|may I ask you something|can I ask you something|I have a question
A: Of course! What would you like to know?

Q: let's play|let us play a game|play a game with me|can we play|I want to play|do you want to play
A: Let us play! Think of an animal and tell me its colour. I will tell you a story about it.

Q: let's talk|talk to me|I want to talk|chat with me|let's chat|can we talk|I want to chat
A: I would love to. How was your day?

Q: say something|tell me something|tell me anything|say anything|surprise me
A: The wren is one of the smallest birds, but its song is one of the loudest.|Did you know that an octopus has eight arms?|A little kindness goes a long way.

Q: tell me a fact|tell me something interesting|tell me a fun fact|do you know a fun fact|give me a fact|tell me an interesting fact
A: An octopus has eight arms and three hearts.|A wren weighs about as much as a coin, but it sings very loud.|Honey can stay good for a very long time.|Snails can sleep for a long time.|A group of fish is called a school.|Bees can see colours that we cannot see.
""")

ADVICE = qa("""
Q: I am sad|I feel sad|I'm sad today|I am so sad|I feel down|I am unhappy|I feel bad|I had a bad day|my day was bad|today was a bad day|I'm feeling sad|I want to cry
A: I am sorry to hear that. It can help to talk to a friend, or to take a slow walk.|I am sorry that you feel sad. Be kind to yourself today. Would you like a story?

Q: I am happy|I'm so happy|I feel great|I had a good day|today was a good day|I am very happy today|I feel happy|I'm excited
A: That is wonderful! I am glad that you are happy.|How nice! What made you happy?

Q: I am bored|I'm bored|I have nothing to do|I feel bored|it is so boring|what should I do today|what can I do today|what should I do when I am bored
A: You could read a book, draw a picture, go for a walk, or call a friend.|How about a story? Or you could go outside and look for birds.

Q: I am tired|I'm tired|I feel tired|I am so tired|I'm sleepy|I am exhausted
A: Then you should rest a little. A short sleep or a cup of tea can help.

Q: I can't sleep|I cannot sleep|I can not sleep at night|I have trouble sleeping
A: Breathe slowly, think of something nice, and count sheep. A calm story may help, too.

Q: I am scared|I am afraid|I'm afraid of the dark|I feel scared|I'm scared of monsters|I am afraid of thunder|I'm scared
A: Everyone is afraid sometimes. Take a deep breath, and talk to someone you trust.

Q: I am hungry|I'm hungry|what should I eat|what can I eat|what should I cook today|I want to eat something|what should I have for dinner
A: How about some soup, or bread with cheese and an apple?|You could make pancakes. They are easy and taste good.

Q: I am thirsty|I'm thirsty
A: Drink a glass of water. That is the best thing to do.

Q: I am angry|I'm angry|I am so angry|I am mad at my friend|I had a fight with my friend|my friend is angry with me
A: Take a deep breath and wait a little. Then say calmly what you feel. It helps to listen, too.

Q: I am lonely|I feel alone|I have no friends|I feel lonely|nobody likes me|I'm lonely
A: I am sorry that you feel alone. Try to say hello to someone today. A small hello can be the start of a friendship.

Q: I am nervous|I have a test tomorrow|I am worried about my test|I'm nervous about school|I have an exam|I feel stressed|I'm worried|I am stressed
A: Take it step by step. Prepare a little, sleep well, and breathe slowly. You can do it.

Q: I am sick|I have a cold|I feel ill|I'm ill|I have a headache|my head hurts|I don't feel well
A: I am sorry to hear that. Rest, drink water or tea, and see a doctor if it does not get better.

Q: it is raining|it is raining today|it's raining outside|the weather is bad|the weather is awful
A: Then it is a good day for a book and a cup of tea.

Q: it is sunny|the sun is shining|the weather is nice|it's a beautiful day|what a nice day
A: How lovely! It is a good day for a walk.

Q: it is my birthday|today is my birthday|it's my birthday today
A: Happy birthday! I wish you a wonderful day with lots of cake.

Q: I lost my keys|I can't find my keys|I lost my book|I lost something
A: Think of where you had it last and look there first. Then ask someone to help you look.

Q: I made a mistake|I did something wrong|I broke something|I broke a cup
A: Everyone makes mistakes. Tell the truth, say sorry, and try to make it right.

Q: I love my dog|I have a dog|I have a cat|I have a pet|my cat is cute|I got a puppy
A: How nice! What is its name?

Q: give me some advice|give me advice|do you have any advice|give me a tip|what is your advice|any advice for me
A: Be kind, be patient, and take one small step at a time.|Listen first, then speak. It helps more often than you think.

Q: what is the meaning of life|what is the most important thing in life|what makes people happy|how can I be happy
A: That is a big question for a small model. I think that good friends, kindness and a good story help a lot.

Q: give me a compliment|say something nice|cheer me up|make me smile|say something nice to me
A: You are kind, and you ask good questions.|You make the world a little brighter.
""")

JOKES = qa("""
Q: x
A: Why did the bird go to school? It wanted to learn how to tweet.

Q: x
A: What do you call a bear with no teeth? A gummy bear.

Q: x
A: Why do bees have sticky hair? Because they use honeycombs.

Q: x
A: What do you get when you cross a snowman and a dog? Frostbite.

Q: x
A: Why did the cookie go to the doctor? It felt crummy.

Q: x
A: What has four wheels and flies? A garbage truck.

Q: x
A: Why was the book so sad? It had too many problems.

Q: x
A: What do you call a sleeping bull? A bulldozer.

Q: x
A: Where do cows go on Friday night? To the moo-vies.
""")
RIDDLES = table("""What has hands but cannot clap?=A clock.; What has teeth but cannot bite?=A comb.; What gets wetter the more it dries?=A towel.;
What has a neck but no head?=A bottle.; What has keys but opens no door?=A piano.; What goes up but never comes down?=Your age.; What has one eye but cannot see?=A needle.;
What is full of holes but still holds water?=A sponge.; What can you catch but not throw?=A cold.""")

POEMS = [
    "The little {x} woke up today\nand sang a song along the way.\nThe sun was warm, the sky was blue,\nand all the world was bright and new.",
    "I saw a {x} beneath a tree.\nIt looked at you, it looked at me.\nIt said hello, then ran away,\nand that was all I saw today.",
    "Oh little {x}, so small, so bright,\nyou keep me company at night.\nThe moon is high, the wind is low,\nand off to sleep we softly go.",
    "A {x} went out to see the sea,\nas happy as a {x} can be.\nThe waves came in, the waves went out,\nthe gulls flew round and round about.",
    "Good night, dear {x}, the day is done.\nThe stars come out now, one by one.\nClose your eyes and dream of light.\nSleep well, my little friend. Good night.",
]

UNKNOWN = """who won the world cup in 1998|what is the stock price of apple|explain quantum physics|write a python program|write code for a website|
who is the president|what is the latest news|how do I fix my car engine|solve this equation for x|what is the square root of 1764|translate this text into latin|
who invented the telephone|what happened in 1492|explain the theory of relativity|how does a nuclear reactor work|write an essay about economics|
what is the population of tokyo|who wrote the odyssey|what time is it|what is the date today|what is the weather like today|what day is it today|
give me the recipe for beef wellington|how do I install linux|what is machine learning good for in banks|can you book a flight|call my mother|
send an email to my boss|how much does a house cost|who is the richest person|what is dna|write a sql query|how do I invest money|what is the best phone|
summarise the news|who was napoleon|what is philosophy|explain how a transistor works|write a cover letter|what is bitcoin|how tall is mount everest|
what is the speed of light|prove the theorem|what is the chemical formula of sugar|play some music|open the door|show me a picture|how far away is mars|
write a letter to the bank|what is 1234 times 5678|explain docker|what is rust|what is an llm scheduler|who is shakespeare|what will happen tomorrow|
who will win the election|how do airplanes fly|what is inflation|tell me about world war two|what is the law of gravity""".replace("\n", "").split("|")
UNKNOWN_A = ["I am sorry, I do not know that. I am a very small model.",
             "I do not know that. I am only a small model, but I can tell you a story.",
             "That is too hard for me. I am a very small language model."]

ASK = ["{}", "{}", "{}", "{}", "{}", "please tell me, {}", "can you tell me {}", "do you know {}", "tell me {}",
       "hey, {}", "quick question: {}", "I have a question: {}", "hello! {}", "hi, {}", "wren, {}", "so {}", "and {}", "I want to know {}"]


def ask(rng, q):
    form = rng.choice(ASK)
    if form != "{}" and not re.match(r"(what|who|where|when|which|how|why|is|can|do|are)\b", q):
        form = "{}"
    return form.format(q)


# --- topics ------------------------------------------------------------------

def from_table(table_):
    def topic(rng):
        qs, answers = rng.choice(table_)
        return [(rng.choice(qs), rng.choice(answers))]
    return topic


def asked(table_):
    def topic(rng):
        qs, answers = rng.choice(table_)
        return [(ask(rng, rng.choice(qs)), rng.choice(answers))]
    return topic


def identity_main(rng):
    """The first three blocks are what people really ask, so they come more often."""
    qs, answers = rng.choice(IDENTITY[:3])
    q = rng.choice(qs)
    if stories.LESSON > 3 and rng.random() < 0.4 and not q.startswith(("h", "your", "introduce")):
        q = rng.choice(["hello", "hello", "hello", "hi", "hi there", "hey", "hello there", "good morning"]) + rng.choice(["! ", "! ", ", ", ". ", " "]) + q
    return [(q, rng.choice(answers))]


def colour(rng):
    thing, c = rng.choice(COLOURS)
    color = rng.choice(["colour", "color"])
    verb = "are" if thing in ("peas", "rain clouds") else "is"
    q = rng.choice([f"what {color} {verb} {thing}", f"what is the {color} of {thing}", f"which {color} does {thing} have",
                    f"tell me the {color} of {thing}"])
    if rng.random() < 0.2:
        other = rng.choice([x for x in ("red", "blue", "green", "black", "white", "yellow") if x != c])
        say = rng.choice([c, other])
        q = f"{verb} {thing} {say}"
        return [(q, f"Yes, {thing} {verb} {c}." if say == c else f"No, {thing} {verb} {c}.")]
    return [(ask(rng, q), rng.choice([f"{cap(thing)} {verb} {c}.", f"{cap(thing)} {verb} {c}.", f"{cap(c)}."]))]


def sound(rng):
    a, s = rng.choice(SOUNDS)
    q = rng.choice([f"what does {an(a)} say", f"what sound does {an(a)} make", f"how does {an(a)} sound", f"what noise does the {a} make"])
    return [(ask(rng, q), rng.choice([f"{cap(an(a))} says {s}.", f"The {a} says \"{s}\"."]))]


def lives(rng):
    a, w = rng.choice(LIVES)
    q = rng.choice([f"where does {an(a)} live", f"where does the {a} live", f"where can I find {an(a)}", f"where is the home of {an(a)}"])
    return [(ask(rng, q), f"{cap(an(a))} lives {w}.")]


def eats(rng):
    a, w = rng.choice(EATS)
    q = rng.choice([f"what does {an(a)} eat", f"what does the {a} like to eat", f"what is the food of {an(a)}"])
    return [(ask(rng, q), f"{cap(an(a))} eats {w}.")]


def babies(rng):
    a, b = rng.choice(BABIES)
    q = rng.choice([f"what is a baby {a} called", f"what do you call a baby {a}", f"what is the name for a baby {a}"])
    return [(ask(rng, q), f"A baby {a} is called {an(b)}.")]


def legs(rng):
    a, n = rng.choice(LEGS)
    q = rng.choice([f"how many legs does {an(a)} have", f"how many legs has {an(a)} got", f"what number of legs does {an(a)} have"])
    return [(ask(rng, q), f"{cap(an(a))} has {n} legs.")]


def opposite(rng):
    a, b = rng.choice(OPPOSITES)
    q = rng.choice([f"what is the opposite of {a}", f"what's the opposite of {a}", f"tell me the opposite of {a}", f"opposite of {a}",
                    f"what is the opposite of the word {a}", f"what is the opposite of \"{a}\"", f"give me the opposite of {a}"])
    return [(ask(rng, q), rng.choice([f"The opposite of {a} is {b}.", f"The opposite of {a} is {b}.", f"{cap(b)}."]))]


def capital(rng):
    a, b = rng.choice(CAPITALS)
    q = rng.choice([f"what is the capital of {a}", f"what's the capital of {a}", f"which city is the capital of {a}",
                    f"tell me the capital of {a}", f"capital of {a}", f"name the capital of {a}"])
    return [(ask(rng, q), f"The capital of {a} is {b}" + ("" if b.endswith(".") else "."))]


def foreign(rng):
    word, t = rng.choice([("hello", HELLO), ("thank you", THANKS)])
    lang, w = rng.choice(t)
    q = rng.choice([f"how do you say {word} in {lang}", f"what is {word} in {lang}", f"say {word} in {lang}", f"how do I say {word} in {lang}",
                    f"translate {word} into {lang}"])
    return [(ask(rng, q), rng.choice([f"In {lang}, {word} is \"{w}\".", f"{cap(word)} in {lang} is \"{w}\"."]))]


def grammar(rng):
    kind = rng.random()
    if kind < 0.4:
        a, b = rng.choice(PLURALS)
        return [(ask(rng, rng.choice([f"what is the plural of {a}", f"plural of {a}", f"one {a}, two what"])), f"The plural of {a} is {b}.")]
    if kind < 0.7:
        a, b = rng.choice(PAST)
        return [(ask(rng, rng.choice([f"what is the past of {a}", f"what is the past tense of {a}", f"past tense of {a}"])), f"The past tense of {a} is {b}.")]
    a, b = rng.choice(RHYMES)
    return [(ask(rng, rng.choice([f"what rhymes with {a}", f"give me a word that rhymes with {a}", f"find a rhyme for {a}", f"tell me a rhyme for {a}"])),
             f"{cap(b)} rhymes with {a}.")]


def shape(rng):
    a, n = rng.choice(SHAPES)
    return [(ask(rng, rng.choice([f"how many sides does {an(a)} have", f"how many corners does {an(a)} have"])), f"{cap(an(a))} has {n} sides.")]


def amount(rng):
    a, b = rng.choice(AMOUNTS)
    return [(ask(rng, f"how many {a}"), b)]


def kinds(rng):
    a, b = rng.choice(KINDS)
    if rng.random() < 0.5:
        return [(ask(rng, rng.choice([f"what is {an(a)}", f"what kind of thing is {an(a)}"])) if rng.random() < 0.0 else f"what kind of thing is {an(a)}", f"{cap(an(a))} is {an(b)}.")]
    other = rng.choice(["fruit", "vegetable", "animal", "bird", "tool", "tree", "flower", "vehicle"])
    if other == b or (b in ("bird", "insect") and other == "animal"):
        return [(f"is {an(a)} {an(other)}", f"Yes, {an(a)} is {an(other)}.")]
    return [(f"is {an(a)} {an(other)}", f"No, {an(a)} is {an(b)}.")]


def can(rng):
    a, b = rng.choice(CAN)
    words = a.split(" ", 1)
    who = "polar bear" if a.startswith("polar") else words[0]
    what = words[1]
    return [(ask(rng, f"can {an(who)} {what}"), f"Yes, {an(who)} can {what}." if b == "yes" else f"No, {an(who)} cannot {what}.")]


def bigger(rng):
    i, j = rng.sample(range(len(SIZES)), 2)
    a, b = SIZES[i], SIZES[j]
    big, small = (a, b) if i > j else (b, a)
    p = rng.random()
    if p < 0.5:
        return [(ask(rng, rng.choice([f"which is bigger, {an(a)} or {an(b)}", f"what is bigger, {an(a)} or {an(b)}"])), f"{cap(an(big))} is bigger than {an(small)}.")]
    if p < 0.75:
        return [(ask(rng, f"which is smaller, {an(a)} or {an(b)}"), f"{cap(an(small))} is smaller than {an(big)}.")]
    return [(f"is {an(a)} bigger than {an(b)}", f"{'Yes' if a == big else 'No'}, {an(big)} is bigger than {an(small)}.")]


def define(rng):
    a, b = rng.choice(DEFINE)
    q = rng.choice([f"what is {a}", f"what's {a}", f"what is {a}", f"explain what {a} is", f"tell me what {a} is", f"what does {a.split(' ', 1)[-1]} mean", f"can you explain what {a} is", f"tell me about {a}"])
    return [(ask(rng, q) if not q.startswith(("explain", "tell", "can")) else q, b)]


def arithmetic(rng):
    p = rng.random()
    if p < 0.5:
        a, b = rng.randint(0, 20), rng.randint(0, 20)
        if rng.random() < 0.5:
            a, b = rng.randint(0, 10), rng.randint(0, 10)
        r, sign, word = a + b, "+", "plus"
    elif p < 0.8:
        a = rng.randint(0, 20)
        b = rng.randint(0, a)
        r, sign, word = a - b, "-", "minus"
    else:
        a, b = rng.randint(0, 10), rng.randint(0, 10)
        r, sign, word = a * b, rng.choice(["*", "x"]), "times"
    style = rng.random()
    if style < 0.25:
        q = f"{a} {word} {b}"
    elif style < 0.4:
        q = f"{a}{sign}{b}"
    elif style < 0.5:
        q = f"{a} {sign} {b} ="
    elif style < 0.6 and word == "plus" and max(a, b) <= 20:
        q = f"{NUMBERS[a]} plus {NUMBERS[b]}"
    else:
        q = f"{a} {sign} {b}"
    if rng.random() < 0.75:
        q = rng.choice(["what is {}", "what's {}", "how much is {}", "calculate {}", "can you calculate {}", "what is {}", "tell me what {} is"]).format(q.replace(" =", ""))
    return [(q, f"{a} {word} {b} is {r}.")]


def word_sum(rng):
    """A tiny story sum."""
    name, b = rng.choice(GIRLS + BOYS), rng.randint(1, 9)
    things = rng.choice("apples balls books nuts cookies flowers shells pears coins stones".split())
    if rng.random() < 0.6:
        a = rng.randint(1, 9)
        how = rng.choice(["gets {} more", "finds {} more", "buys {} more"]).format(b)
        return [(f"{name} has {a} {things} and {how}. how many {things} does {name} have", f"{a} plus {b} is {a + b}. {name} has {a + b} {things}.")]
    a = rng.randint(b + 1, b + 9)
    how = rng.choice(["gives {} away", "loses {}", "sells {}"]).format(b)
    left = a - b
    return [(f"{name} has {a} {things} and {how}. how many {things} are left",
             f"{a} minus {b} is {left}. " + (f"There is 1 {things[:-1] if not things.endswith('ies') else 'cookie'} left." if left == 1 else f"There are {left} {things} left."))]


def counting(rng):
    p = rng.random()
    if p < 0.25:
        n = rng.choice([3, 4, 5, 6, 7, 8, 9, 10, 10, 10, 12, 15, 20])
        ask_ = rng.choice(["count to {}", "can you count to {}", "please count to {}", "count from 1 to {}", "count up to {}"]).format(n)
        return [(ask_, ", ".join(str(i) for i in range(1, n + 1)) + ".")]
    if p < 0.35:
        a = rng.randint(2, 10)
        b = a + rng.randint(3, 8)
        return [(f"count from {a} to {b}", ", ".join(str(i) for i in range(a, b + 1)) + ".")]
    if p < 0.45:
        n = rng.choice([3, 5, 10, 10])
        return [(rng.choice(["count backwards from {}", "count down from {}"]).format(n), ", ".join(str(i) for i in range(n, 0, -1)) + ".")]
    if p < 0.65:
        n = rng.randint(0, 29)
        return [(ask(rng, rng.choice([f"what comes after {n}", f"which number comes after {n}", f"what number comes after {n}"])), f"After {n} comes {n + 1}.")]
    if p < 0.75:
        n = rng.randint(1, 30)
        return [(ask(rng, rng.choice([f"what comes before {n}", f"which number comes before {n}"])), f"Before {n} comes {n - 1}.")]
    a, b = rng.sample(range(0, 31), 2)
    if p < 0.9:
        return [(ask(rng, rng.choice([f"which is bigger, {a} or {b}", f"which number is bigger, {a} or {b}"])), f"{max(a, b)} is bigger than {min(a, b)}.")]
    n = rng.randint(1, 30)
    return [(f"is {n} even or odd", f"{n} is {'even' if n % 2 == 0 else 'odd'}.")]


def calendar(rng):
    p = rng.random()
    names, unit = (DAYS, "day") if rng.random() < 0.55 else (MONTHS, "month")
    i = rng.randrange(len(names))
    here, nxt, prev = names[i], names[(i + 1) % len(names)], names[i - 1]
    if p < 0.4:
        return [(ask(rng, rng.choice([f"what {unit} comes after {here}", f"which {unit} comes after {here}", f"what comes after {here}", f"which {unit} is after {here}"])), f"After {here} comes {nxt}.")]
    if p < 0.7:
        return [(ask(rng, rng.choice([f"what {unit} comes before {here}", f"which {unit} comes before {here}", f"what comes before {here}"])), f"Before {here} comes {prev}.")]
    if p < 0.78 and unit == "day":
        return [(f"if today is {here}, what day is tomorrow", f"If today is {here}, tomorrow is {nxt}.")]
    if p < 0.86:
        listed = ", ".join(names[:-1]) + " and " + names[-1]
        ask_ = rng.choice(["name the {}", "what are the {}", "tell me the {}", "list the {}"]).format("days of the week" if unit == "day" else "months of the year")
        return [(ask_, ("The days of the week are " if unit == "day" else "The months of the year are ") + listed + ".")]
    if p < 0.93:
        order = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()[i]
        return [(f"what is the {order} {unit} of the {'week' if unit == 'day' else 'year'}", f"The {order} {unit} of the {'week' if unit == 'day' else 'year'} is {here}.")]
    season = rng.choice(["spring", "summer", "autumn", "winter"])
    after = {"spring": "summer", "summer": "autumn", "autumn": "winter", "winter": "spring"}[season]
    return [(f"what season comes after {season}", f"After {season} comes {after}.")]


def letters(rng):
    i = rng.randrange(25)
    p = rng.random()
    if p < 0.6:
        return [(ask(rng, f"what letter comes after {LETTERS[i]}"), f"After {LETTERS[i]} comes {LETTERS[i + 1]}.")]
    if p < 0.8:
        return [(rng.choice(["say the alphabet", "what is the alphabet", "tell me the alphabet", "recite the alphabet"]), ", ".join(LETTERS) + ".")]
    return [(ask(rng, f"what letter comes before {LETTERS[i + 1]}"), f"Before {LETTERS[i + 1]} comes {LETTERS[i]}.")]


def listing(rng):
    kind = rng.choice(list(LISTS))
    items = LISTS[kind]
    if kind in ("seasons", "weekdays"):
        n, chosen = len(items), list(items)
    else:
        n = rng.choice([2, 3, 3, 3, 4, 5])
        chosen = rng.sample(items, min(n, len(items)))
        n = len(chosen)
    num = rng.choice([NUMBERS[n], str(n)]) if n > 1 else "some"
    q = rng.choice(["name {} {}", "tell me {} {}", "list {} {}", "give me {} {}", "can you name {} {}", "name {} {} please", "what are {} {}", "I need {} {}", "write a list of {} {}"]).format(num, kind)
    p = rng.random()
    if p < 0.25 or "list of" in q:
        return [(q, "\n".join(f"{i + 1}. {cap(x)}" for i, x in enumerate(chosen)))]
    lead = rng.choice(["", f"{cap(NUMBERS[n])} {kind} are "])
    text = ", ".join(chosen[:-1]) + " and " + chosen[-1]
    return [(q, (lead + text if lead else cap(text)) + ".")]


def joke(rng):
    q = rng.choice(["tell me a joke", "do you know a joke", "make me laugh", "say something funny", "a joke please", "another joke", "tell me something funny", "can you tell me a joke", "I want to hear a joke", "give me a joke"])
    return [(q, rng.choice(JOKES)[1][0])]


def riddle(rng):
    q, a = rng.choice(RIDDLES)
    start = rng.choice(["tell me a riddle", "do you know a riddle", "give me a riddle", "a riddle please", "can you tell me a riddle"])
    reply = rng.choice(["I don't know", "what is it", "tell me", "I give up", "no idea", "what is the answer"])
    if rng.random() < 0.6:
        return [(start, q), (reply, f"It is {a[0].lower() + a[1:]}" if not a.startswith("Your") else "It is your age.")]
    return [(q[:-1], a)]


def poem(rng):
    x = rng.choice(list(ANIMALS) + ["star", "moon", "tree", "flower", "boat", "cloud", "robot", "dragon"])
    q = rng.choice([f"write a poem about {an(x)}", f"write me a short poem about {an(x)}", f"can you write a poem about {an(x)}", f"a poem about {an(x)} please", f"tell me a poem about {an(x)}", f"make a rhyme about {an(x)}", f"poem about {an(x)}", f"write a haiku about {an(x)}"])
    if rng.random() < 0.25:
        x = rng.choice(["bird", "star", "wren", "moon"])
        q = rng.choice(["write a poem", "tell me a poem", "can you write a poem", "do you know a poem", "a short poem please"])
    text = rng.choice(POEMS).replace("{x}", x)
    return [(q, re.sub(r"\b([Aa]) (?=[aeiou])(?!uni)", r"\1n ", text))]


def made_up(rng):
    syl = ["bo", "ka", "li", "mur", "zen", "tal", "vi", "ro", "ne", "shu", "gar", "pim", "dol", "fe", "wex", "qua", "bri", "ton", "sa", "lu", "ix", "om"]
    return "".join(rng.choice(syl) for _ in range(rng.choice([2, 2, 3])))


WORDS = sorted({w for pair in OPPOSITES + COLOURS + SOUNDS + KINDS for w in (pair[0].split(" ")[-1],)} | set(TOYS) | set(ANIMALS) | set(FOODS))


def say(rng):
    p = rng.random()
    if p < 0.3:
        x = made_up(rng)
    elif p < 0.6:
        x = rng.choice(WORDS)
    elif p < 0.8:
        x = f"{rng.choice(ADJ)} {rng.choice(WORDS)}"
    else:
        x = rng.choice(["I like cake", "the sun is bright", "good morning, world", "hello, world", "hello world", "the fox is red", "I am a bird", "yes, I can",
                        "the cat sat on the mat", "we are friends", "it is late", "a big blue boat", "one two three", "thank you all", "hello to my friend " + rng.choice(GIRLS + BOYS)])
    q = rng.choice(["say {}", "say {}", "say \"{}\"", "please say {}", "can you say {}", "repeat after me: {}", "repeat: {}", "say the word {}", "write {}", "just say {}"])
    if " " in x:
        q = q.replace("the word ", "")
    n = rng.random()
    if n < 0.12:
        times = rng.choice([("twice", 2), ("three times", 3), ("two times", 2)])
        return [(f"say {x} {times[0]}", cap(", ".join([x] * times[1])) + ".")]
    return [(q.format(x), cap(x) + ".")]


def my_name(rng):
    name = rng.choice(GIRLS + BOYS + PETS + [cap(made_up(rng)) for _ in range(60)])
    intro = rng.choice(["my name is {}", "I am {}", "I'm {}", "hello, my name is {}", "hi, I'm {}", "hi! I am {}", "you can call me {}", "hello! my name is {}", "hey, I'm {}"]).format(name)
    answer = rng.choice([f"Hello, {name}! It is nice to meet you.", f"Nice to meet you, {name}! I am Wren."])
    turns = [(intro, answer)]
    if rng.random() < 0.6:
        if rng.random() < 0.5:
            turns += rng.choice(EASY)(rng)
        turns.append((rng.choice(["what is my name", "do you remember my name", "what's my name", "who am I", "do you know my name", "can you tell me my name", "what did I say my name was"]),
                      f"Your name is {name}."))
    return turns


def my_likes(rng):
    what = rng.random()
    if what < 0.5:
        c = rng.choice("red blue green yellow orange purple pink white black brown".split())
        color = rng.choice(["colour", "color"])
        fav = rng.choice(["favourite", "favorite"])
        turns = [(f"my {fav} {color} is {c}", rng.choice([f"{cap(c)} is a lovely {color}.", f"How nice! I like {c}, too."]))]
        q, a = f"what is my {fav} {color}", f"Your {fav} {color} is {c}."
    elif what < 0.75:
        x = rng.choice(list(ANIMALS))
        turns = [(rng.choice([f"my favourite animal is the {x}", f"my favorite animal is the {x}"]), f"The {x} is a wonderful animal.")]
        q, a = "what is my favourite animal", f"Your favourite animal is the {x}."
    else:
        pet, name = rng.choice(["dog", "cat", "hamster", "parrot", "rabbit", "pony"]), rng.choice(PETS + [cap(made_up(rng)) for _ in range(40)])
        turns = [(rng.choice([f"I have a {pet} named {name}", f"I have a {pet}. its name is {name}", f"my {pet} is called {name}"]), f"{name} is a nice name for a {pet}.")]
        q, a = rng.choice([f"what is the name of my {pet}", f"what is my {pet} called", f"what's my {pet}'s name"]), f"Your {pet} is called {name}."
    if rng.random() < 0.6:
        if rng.random() < 0.4:
            turns += rng.choice(EASY)(rng)
        turns.append((q, a))
    return turns


def i_like(rng):
    x = rng.choice(["dogs", "cats", "birds", "music", "books", "cake", "the sea", "the rain", "apples", "stories", "trains", "flowers", "snow", "to swim", "to read", "to sing", "to draw",
                    "football", "chocolate", "tea", "horses", "foxes", "the moon"])
    if rng.random() < 0.5:
        return [(f"do you like {x}", rng.choice([f"Yes, I like {x} in stories. Do you like {x}?"] if not x.startswith("to ") else ["I am a computer program, so I cannot do that. But I like to tell stories about it."]))]
    thing = x if not x.startswith("to ") else "that"
    return [(rng.choice([f"I like {x}", f"I love {x}", f"I really like {x}"]), f"I like {thing}, too! Would you like a story about {'it' if thing == 'that' else x}?")]


def unknown(rng):
    return [(rng.choice(UNKNOWN), rng.choice(UNKNOWN_A))]


STORY_ASK = ["tell me a story about {}", "tell me a story about {}", "tell me a story about {}", "tell a story about {}", "can you tell me a story about {}", "write a story about {}",
             "please tell me a story about {}", "I want a story about {}", "write a short story about {}", "a story about {} please", "story about {}", "do you know a story about {}",
             "tell me a short story about {}", "make up a story about {}", "I would like to hear a story about {}", "can you write a short story about {}", "could you tell me a story about {}",
             "write me a story about {}", "give me a story about {}", "tell me a bedtime story about {}", "tell me something about {} in a story", "let's hear a story about {}"]


def story(rng):
    """A story on request: about a character, two of them, a thing, a theme, or nothing special."""
    p = rng.random()
    main = friend = obj = plot = None
    short = rng.random() < 0.5
    lead = ["Once upon a time"]
    if p < 0.42:
        kind = rng.choice(list(ANIMALS) * 2 + list(FANTASY) + ["girl", "boy"] * 6)
        r = rng.random()
        main = make_who(rng, kind=kind)
        adj = rng.choice(["", "", "", "little ", "brave ", "small ", "kind ", "sad ", "lonely ", "happy ", "young ", "funny ", "lazy ", "clever "])
        main.adj = adj or None
        topic = an(adj + kind)
        if r < 0.3 and main.name:
            topic += rng.choice([" named ", " called ", " who is called "]) + main.name
        elif r < 0.4 and main.name:
            topic = main.name + " the " + kind
    elif p < 0.5:
        # An invented or rare word, so that the model learns to take the subject from the question.
        kind = rng.choice("lizard hare otter lynx moose walrus goldfish peacock pigeon jellyfish worm stork puffin hawk eagle sparrow weasel llama alpaca gorilla cricket moth "
                          "starfish oyster bat snake rhino leopard cheetah dinosaur knight sailor judge nurse chef farmer detective vampire goblin cook pilot captain ninja cowboy "
                          "tree cloud star train boat teapot chair sock potato car pencil lamp clock".split() + [made_up(rng)])
        main = make_who(rng, kind=kind)
        topic = an(kind)
        if main.name and rng.random() < 0.3:
            topic += " named " + main.name
    elif p < 0.64:
        main = make_who(rng, kind=rng.choice(list(ANIMALS) * 3 + list(FANTASY) + ["girl", "boy"] * 10))
        friend = make_who(rng, avoid=[main], kind=rng.choice([k for k in list(ANIMALS) + ["girl", "boy"] if k != main.kind]))
        topic = f"{an(main.kind)} and {an(friend.kind)}"
        if stories.LESSON > 1 and rng.random() < 0.35:
            for who, other in ((main, friend), (friend, main)):
                who.name = who.name or rng.choice([n for n in PETS if n != other.name])
            if main.is_child and friend.is_child or rng.random() < 0.3:
                topic = f"{main.name} and {friend.name}"
            return [(rng.choice(STORY_ASK).format(topic), duo(rng, main, friend))]
    elif p < 0.74:
        thing = rng.choice(TOYS)
        obj = f"{rng.choice(ADJ)} {thing}" if rng.random() < 0.6 else thing
        plot = rng.choice(OBJECT_PLOTS)
        topic = an(obj)
    elif p < 0.86:
        topic = rng.choice(list(THEMES))
        plot = rng.choice(THEMES[topic])
    else:
        topic = None
    s = Story(rng, main=main, friend=friend, obj=obj, plot=plot)
    if topic is None:
        q = rng.choice(["tell me a story", "tell me a story", "can you tell me a story", "tell a story", "I want a story", "a story please", "write a story", "write a short story", "please tell me a short story",
                        "do you know a story", "tell me a bedtime story", "once upon a time", "another story please", "story time", "yes, a story please", "make up a story", "tell me something nice"])
    else:
        q = rng.choice(STORY_ASK).format(topic)
    turns = [(q, s.text("short" if short else "normal"))]
    if rng.random() < 0.2:
        turns += story_question(rng, s)
    return turns


def story_question(rng, s):
    """A question about the story just told, answered from the story."""
    options = []
    if s.A.name and s.B.name:
        options.append(([f"what was the name of the {s.A.kind}", f"what is the name of the {s.A.kind}", f"who was the {s.A.kind}"], f"The {s.A.kind} was called {s.A.name}."))
        options.append((["who is the story about", "who was in the story", "what are the names in the story"], f"The story is about {s.A.name} and {s.B.name}."))
        options.append(([f"who was {s.A.name}", f"who is {s.A.name}"], f"{s.A.name} was {an(s.A.kind)}."))
        options.append(([f"who was {s.B.name}", f"who is {s.B.name}"], f"{s.B.name} was {an(s.B.kind)}."))
        if s.A.kind != s.B.kind:
            options.append(([f"what was the name of the {s.B.kind}"], f"The {s.B.kind} was called {s.B.name}."))
    else:
        options.append((["who is the story about", "who was in the story"], f"The story is about {s.A.name or an(s.A.kind)} and {s.B.name or an(s.B.kind)}."))
    if s.plot == "lost":
        options.append((["what was lost", "what did they look for"], f"They looked for the {s.thing}."))
    qs, a = rng.choice(options)
    return [(rng.choice(qs), a)]


def system_persona(rng):
    """The system message gives another name; the model takes it from there."""
    who = make_who(rng)
    name = rng.choice(GIRLS + BOYS + PETS + [cap(made_up(rng)) for _ in range(40)])
    role = rng.choice(["a friendly robot", "a helpful assistant", "an old wizard", "a kind teacher", "a small bird", "a cheerful pirate", "a wise owl", "a happy dog", "a clever fox", f"a {who.kind}"])
    role = re.sub(r"\ba (?=[aeiou])", "an ", role)
    system = rng.choice([f"You are {name}, {role}.", f"Your name is {name}. You are {role}.", f"You are {role} named {name}."])
    q = rng.choice(IDENTITY[rng.choice([0, 0, 1])][0])
    a = rng.choice([f"I am {name}, {role}.", f"Hello! I am {name}, {role}."]) if q in IDENTITY[0][0] else f"My name is {name}."
    return system, [(q, a)]


SYSTEMS = ["You are a helpful assistant.", "You are Wren, a small and friendly model.", "You are a kind storyteller.", "Answer in short sentences.", "Be friendly and brief.", "You are a friendly assistant.",
           "You are Wren.", "Help the user.", "You are a helpful assistant. Answer briefly.", "You tell stories.", "You are a patient teacher.", "Use simple words.", "Be kind.",
           "You are a storyteller for children.", "Answer simply and correctly.", "You are a helpful, honest assistant.", "Keep your answers short.", "You are an assistant."]

greet, react, advice = from_table(GREETINGS), from_table(REACT), from_table(ADVICE)
identity, why, howto = from_table(IDENTITY), asked(WHY), from_table(HOWTO)
EASY = [colour, sound, opposite, arithmetic, capital, lives, listing, greet, why, define]
TOPICS = [
    (identity_main, 5), (identity, 6), (greet, 7), (react, 4), (advice, 5), (why, 3), (howto, 3), (colour, 3), (sound, 2), (lives, 2), (eats, 2), (babies, 1.5), (legs, 1.5),
    (opposite, 5), (capital, 3), (foreign, 1.5), (grammar, 2.5), (shape, 0.7), (amount, 2), (kinds, 1.5), (can, 1.5), (bigger, 2), (define, 5), (arithmetic, 8), (word_sum, 2), (counting, 4),
    (calendar, 4), (letters, 1.5), (listing, 5), (joke, 1.5), (riddle, 1.5), (poem, 2), (say, 6), (my_name, 5), (my_likes, 2.5), (i_like, 1.5), (unknown, 3), (story, 10),
]
_T = [t for t, _ in TOPICS]
_FIRST = {say: 4, my_name: 4, story: 14}  # where the first lesson gave another weight
_W = {1: [_FIRST.get(t, w) for t, w in TOPICS], 2: [w for _, w in TOPICS]}
_W[3] = _W[2]
_W[4] = [25 if t is identity_main else 12 if t is identity else w for t, w in TOPICS]


def user_noise(rng, text):
    """People write with and without capitals and full stops; so does the user here."""
    quote = "\"" in text or "repeat" in text
    p = rng.random()
    if p < 0.55:
        text = cap(text)
        if stories.LESSON > 3 and rng.random() < 0.8:
            text = re.sub(r"(?<=[.!?] )[a-z]", lambda m: m.group().upper(), text)
    elif p < 0.62 and not quote:
        text = text.lower()
    if not text[-1] in ".!?:)=\"" and ord(text[-1]) < 10000:
        question = re.match(r"\W*(?:\w+[,!:.]? ){0,4}?(what|who|where|when|which|how|why|is|can|do|are|does|will|could|may)\b", text.lower()) is not None
        q = rng.random()
        if q < 0.6:
            text += "?" if question else rng.choice([".", ".", "!"])
    if rng.random() < 0.03:
        text += rng.choice([" 🙂", " Please!", " Thanks!", " Thank you."])
    return text


def conversation(rng):
    """A list of messages: maybe a system message, then user and assistant in turns."""
    messages = []
    if rng.random() < 0.05:
        system, turns = system_persona(rng)
        messages.append(("system", system))
    else:
        if rng.random() < 0.25:
            messages.append(("system", rng.choice(SYSTEMS)))
        turns = []
        n = rng.choice([1, 1, 1, 1, 2, 2, 3, 4])
        if n > 1 and rng.random() < 0.4:
            turns += greet(rng)
        while n > 0:
            turns += rng.choices(_T, _W[stories.LESSON])[0](rng)
            n -= 1
        if len(turns) > 1 and rng.random() < 0.3:
            turns += from_table(REACT[:2] + GREETINGS[-4:-2])(rng)
    for q, a in turns:
        messages += [("user", user_noise(rng, q)), ("assistant", cap(a))]
    return messages


if __name__ == "__main__":
    r = random.Random(3)
    for _ in range(40):
        for role, content in conversation(r):
            print(f"{role:>9}: {content}")
        print()
