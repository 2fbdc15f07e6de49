"""Good short texts in ten languages, with the tables, lists and refrains that people write, and bad
ones that repeat.

Written for the rules of repetition: what somebody would want to keep, and what nobody would.
"""

# ruff: noqa: E501, RUF001 (texts)
from __future__ import annotations


def grid(rows: list[list[str]]) -> str:
    """A table with drawn lines, as reStructuredText has them."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rule = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    lines = [rule]
    for row in rows:
        lines += [
            "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |",
            rule,
        ]
    return "\n".join(lines)


def pipes(rows: list[list[str]]) -> str:
    """A Markdown table."""
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def cells(rows: list[list[str]]) -> str:
    """A table as text extractors leave it: a cell a line."""
    return "\n".join(cell for row in rows for cell in row)


def tabs(rows: list[list[str]]) -> str:
    return "\n".join("\t".join(row) for row in rows)


# Language: an opening, a table of few different cells, a second paragraph; a list or dialogue; a
# text with a refrain.
TEXTS: dict[str, tuple[str, list[list[str]], str, str, str]] = {
    "en": (
        "The library runs on all common systems, but not every feature is there everywhere. "
        "Before you install it, look at the table below and check what your machine can do.",
        [["System", "Camera", "Sound", "Print"], ["Linux", "yes", "yes", "no"],
            ["Windows", "yes", "no", "yes"], ["macOS", "yes", "yes", "yes"],
            ["BSD", "no", "no", "yes"], ["Haiku", "no", "yes", "no"]],
        "Where a feature is missing, the program says so once at the start and goes on without "
        "it. Patches that add support for another system are welcome; please open an issue first "
        "so that nobody does the work twice.",
        "Q: Do I need a licence to fish in the lake?\nA: Yes, and you get one at the town "
        "hall.\nQ: How much does it cost?\nA: Twelve euros for a day, forty for a month.\nQ: May "
        "children fish too?\nA: Yes, with an adult who has a licence.\nQ: Is night fishing "
        "allowed?\nA: No, between ten and five the lake is closed.\nQ: Where can I park?\nA: "
        "Beside the old mill, free of charge.",
        "The rain came down on the harbour wall,\nand the boats went out again.\nMy father stood "
        "in the open hall\nand the boats went out again.\nHe counted the lamps as they left the "
        "bay,\nhe said not a word till the end of day,\nand what he was thinking he would not "
        "say,\nand the boats went out again.",
    ),
    "de": (
        "Unsere Bücherei hat neue Öffnungszeiten. Sie gelten ab dem ersten März für alle "
        "Zweigstellen, solange die Bauarbeiten in der Innenstadt dauern.",
        [["Ort", "Montag", "Dienstag", "Mittwoch"], ["Mitte", "9–18 Uhr", "9–18 Uhr",
            "geschlossen"], ["Nord", "9–18 Uhr", "geschlossen", "9–18 Uhr"],
            ["Süd", "geschlossen", "9–18 Uhr", "9–18 Uhr"],
            ["West", "9–18 Uhr", "9–18 Uhr", "geschlossen"]],
        "Bücher können wie bisher in jeder Zweigstelle zurückgegeben werden. Wer außerhalb der "
        "Öffnungszeiten kommt, findet neben dem Eingang einen Kasten, der jeden Morgen geleert "
        "wird.",
        "Zutaten für den Teig:\n- 250 g Mehl\n- 125 g Butter\n- 1 Ei\n- 1 Prise Salz\nFür den "
        "Belag:\n- 500 g Zwiebeln\n- 200 g Speck\n- 250 g Sahne\n- 2 Eier\n- Salz und "
        "Pfeffer\nDen Teig kneten und eine Stunde ruhen lassen. Die Zwiebeln in Ringe schneiden "
        "und mit dem Speck andünsten, dann mit Sahne und Eiern verrühren und auf dem Teig "
        "verteilen.",
        "Der Mond ist über den Berg gegangen,\nschlaf, mein Kind, schlaf ein.\nDie Vögel haben "
        "sich müde gesungen,\nschlaf, mein Kind, schlaf ein.\nDer Vater ist noch auf dem weiten "
        "Meer,\ner bringt dir einen silbernen Fisch hierher,\nund morgen scheint wieder der "
        "Sonnenschein,\nschlaf, mein Kind, schlaf ein.",
    ),
    "fr": (
        "Le marché de la place a lieu trois fois par semaine. Les producteurs de la vallée y "
        "vendent des fruits, des légumes et du fromage, et l'on y trouve aussi du poisson frais "
        "le vendredi.",
        [["Produit", "Mardi", "Vendredi", "Dimanche"], ["Légumes", "oui", "oui", "oui"],
            ["Fromage", "non", "oui", "oui"], ["Poisson", "non", "oui", "non"],
            ["Fleurs", "non", "non", "oui"], ["Pain", "oui", "oui", "oui"]],
        "En été, le marché ouvre une heure plus tôt à cause de la chaleur. Il est conseillé de "
        "venir à pied, car les rues voisines sont fermées à la circulation jusqu'à midi.",
        "— Vous partez déjà ?\n— Oui, mon train est à six heures.\n— Il reste pourtant du "
        "café.\n— Non merci, j'en ai assez bu.\n— Alors prenez au moins un morceau de tarte pour "
        "la route.\n— Vous êtes trop bonne.\n— Et revenez nous voir au printemps, quand les "
        "cerisiers sont en fleur.\n— Je vous le promets.",
        "Sur le pont de bois passe le meunier,\nil fait froid ce matin.\nIl porte son sac, il "
        "chausse son soulier,\nil fait froid ce matin.\nLa rivière est prise et la roue ne va "
        "plus,\nle blé dort au grenier, le four s'est tu,\net le chat regarde le feu perdu,\nil "
        "fait froid ce matin.",
    ),
    "es": (
        "El museo ha cambiado sus tarifas este año. La entrada incluye la exposición permanente y "
        "el jardín, pero las salas nuevas se pagan aparte, como se ve en la tabla.",
        [["Visitante", "Museo", "Jardín", "Salas nuevas"],
            ["Adultos", "8 euros", "gratis", "4 euros"],
            ["Estudiantes", "4 euros", "gratis", "4 euros"],
            ["Niños", "gratis", "gratis", "gratis"], ["Jubilados", "4 euros", "gratis", "4 euros"]],
        "Los domingos por la tarde la entrada es libre para todos. Conviene llegar temprano, "
        "porque solo pueden entrar doscientas personas a la vez y la cola suele llegar hasta la "
        "fuente.",
        "Normas de la piscina:\n1. Dúchese antes de entrar en el agua.\n2. No corra por el "
        "borde.\n3. No entre con comida.\n4. No entre con zapatos.\n5. Los menores de doce años "
        "entran con un adulto.\n6. Obedezca siempre al socorrista.\nLa dirección no responde de "
        "los objetos perdidos, que se guardan una semana en la taquilla.",
        "Por el camino del monte viene la nieve,\nay, qué largo es el invierno.\nLa abuela cierra "
        "la puerta y el fuego enciende,\nay, qué largo es el invierno.\nCuenta la historia del "
        "lobo que habló con la luna,\ndel niño que hizo de un tronco su cuna,\ny nadie se duerme, "
        "que es noche de bruma,\nay, qué largo es el invierno.",
    ),
    "pt": (
        "A linha do comboio entre a serra e a costa esteve fechada dois anos. Desde a primavera "
        "circulam outra vez quatro comboios por dia, e os horários são os seguintes.",
        [["Estação", "Manhã", "Tarde", "Noite"], ["Serra", "7h10", "13h10", "19h10"],
            ["Ponte", "7h40", "13h40", "não para"], ["Vila", "não para", "14h05", "20h05"],
            ["Praia", "8h30", "14h30", "20h30"]],
        "Aos fins de semana os comboios da noite não circulam. Os bilhetes compram-se na estação "
        "ou ao revisor, sem acréscimo, e as bicicletas viajam de graça na última carruagem.",
        "Lista de material para a escola:\n- um caderno grande\n- dois cadernos pequenos\n- um "
        "lápis azul\n- um lápis vermelho\n- uma régua\n- uma tesoura\n- cola\n- papel de "
        "desenho\nO material deve ter o nome da criança. Quem não puder comprar tudo fala com a "
        "professora, que tem sempre alguma coisa guardada no armário.",
        "A barca vai descendo o rio,\nnão voltes, amor, tão cedo.\nO vento sopra com frio,\nnão "
        "voltes, amor, tão cedo.\nAs redes secam ao sol da tarde,\na tua camisa no fio arde,\nque "
        "a maré te leve e que Deus te guarde,\nnão voltes, amor, tão cedo.",
    ),
    "ru": (
        "Летом автобусы до дачного посёлка ходят по новому расписанию. Остановка у вокзала "
        "перенесена на другую сторону площади, рядом с аптекой.",
        [["Рейс", "Понедельник", "Среда", "Суббота"], ["Первый", "есть", "есть", "есть"],
            ["Второй", "есть", "нет", "есть"], ["Третий", "нет", "нет", "есть"],
            ["Четвёртый", "есть", "есть", "нет"]],
        "Билет можно купить у водителя или заранее в кассе вокзала. Дети до семи лет едут "
        "бесплатно, а за большую сумку нужно заплатить отдельно.",
        "— Вы давно здесь живёте?\n— Уже двадцать лет.\n— И не хотели уехать в город?\n— Нет, "
        "здесь тихо и рядом лес.\n— А зимой не скучно?\n— Зимой я читаю и чиню лодку.\n— А кто "
        "привозит хлеб?\n— Хлеб привозит автолавка, по вторникам.",
        "За рекой дымок поднялся белый,\nспи, дорога, спи, моя река.\nМой отец костёр зажёг "
        "несмелый,\nспи, дорога, спи, моя река.\nОн ушёл по утренней прохладе,\nне сказал ни "
        "слова о награде,\nтолько лодку у крыльца приладил,\nспи, дорога, спи, моя река.",
    ),
    "zh": (
        "这座小图书馆建在河边，一共有三层。第一层放报纸和杂志，第二层放小说和历史书，第三层是安静的自习室。馆里的设备不太一样，请看下面的表。",
        [["楼层", "电脑", "空调", "饮水机"], ["一层", "有", "有", "有"], ["二层", "没有", "有", "没有"],
            ["三层", "没有", "没有", "有"]],
        "读者可以一次借五本书，借期是一个月。如果还没有看完，可以在网上续借一次。下雨天请不要把湿的雨伞带进阅览室，门口有放雨伞的架子。",
        "材料：\n鸡蛋三个\n番茄两个\n葱一根\n盐少许\n糖少许\n做法：先把鸡蛋打散，加一点盐。番茄切成小块。锅里放油，油热了以后倒入鸡蛋，炒到刚刚凝固就盛出来。再放一点油，"
        "把番茄炒软，加糖和盐，最后倒回鸡蛋，撒上葱花。这道菜很简单，孩子们都喜欢。",
        "小河弯弯向东流，\n月亮照在我家门口。\n妈妈在灯下缝衣裳，\n月亮照在我家门口。\n爷爷讲起从前的故事，\n风吹过高高的杨柳，\n我数着星星睡着了，\n月亮照在我家门口。",
    ),
    "ja": (
        "町の体育館は来月から新しい時間割になります。工事のため、曜日によって使えない部屋がありますので、来る前に次の表を見てください。",
        [["部屋", "月曜", "水曜", "土曜"], ["大ホール", "使えます", "休み", "使えます"], ["小ホール", "使えます", "使えます", "休み"],
            ["会議室", "休み", "使えます", "使えます"], ["プール", "休み", "休み", "使えます"]],
        "申し込みは前の日の夕方までに、窓口か電話でお願いします。一回の利用は二時間までです。使ったあとは、机といすを元の場所に戻して、窓を閉めてから帰ってください。",
        "「もう帰るの。」\n「うん、明日は早いから。」\n「お茶をもう一杯どう。」\n「ありがとう、でも電車がなくなる。」\n「じゃあ、駅まで送っていくよ。」\n「雨が降っているから、"
        "ここでいいよ。」\n「傘を持っていきなさい。」\n「来週返しに来るね。」",
        "山の向こうに日が沈む、\nもうすぐ冬が来る。\n畑の煙が白くのぼり、\nもうすぐ冬が来る。\n母は縁側で豆をより、\n父は黙って縄をない、\n弟は犬とねむっている、\n"
        "もうすぐ冬が来る。",
    ),
    "ko": (
        "마을 도서관은 다음 달부터 여는 시간이 바뀝니다. 공사가 끝날 때까지 쉬는 날이 층마다 다르니 오시기 전에 아래 표를 확인해 주시기 바랍니다.",
        [["층", "월요일", "수요일", "토요일"], ["일층", "열림", "열림", "닫힘"], ["이층", "닫힘", "열림", "열림"],
            ["삼층", "열림", "닫힘", "열림"], ["지하", "닫힘", "닫힘", "열림"]],
        "책은 한 번에 다섯 권까지 빌릴 수 있고 기간은 두 주일입니다. 비가 오는 날에는 우산을 입구에 있는 통에 넣어 주시고, 음료수는 열람실에 가지고 들어오지 "
        "마십시오.",
        "준비물:\n- 물 한 병\n- 도시락\n- 모자\n- 운동화\n- 비옷\n- 작은 수건\n산에는 가게가 없으니 먹을 것을 꼭 가져오세요. 아침 일곱 시에 학교 "
        "앞에서 버스가 떠나며, 늦으면 기다리지 않습니다. 돌아오는 시간은 저녁 여섯 시쯤입니다.",
        "강물은 천천히 바다로 가고,\n나는 여기서 너를 기다린다.\n들판에 노란 꽃이 피었다 지고,\n나는 여기서 너를 기다린다.\n편지는 오지 않고 계절은 "
        "바뀌어,\n지붕 위에 첫눈이 소리 없이 쌓여도,\n불을 켜 둔 창가에 앉아서,\n나는 여기서 너를 기다린다.",
    ),
    "ar": (
        "تغيرت مواعيد العيادة في القرية منذ بداية الشهر، وأصبح الأطباء يأتون في أيام مختلفة. يبين "
        "الجدول التالي من يعمل في كل يوم حتى نهاية الصيف.",
        [["الطبيب", "السبت", "الاثنين", "الأربعاء"], ["طبيب الأسنان", "حاضر", "غائب", "حاضر"],
            ["طبيب الأطفال", "حاضر", "حاضر", "غائب"], ["طبيب العيون", "غائب", "حاضر", "غائب"],
            ["الممرضة", "حاضر", "حاضر", "حاضر"]],
        "يمكن حجز موعد في الصباح من مكتب الاستقبال، ولا حاجة إلى موعد في الحالات العاجلة. يرجى "
        "إحضار بطاقة التأمين والأدوية التي يتناولها المريض.",
        "- هل تسكن هنا منذ زمن طويل؟\n- نعم، منذ عشرين سنة.\n- ألم تفكر في الانتقال إلى "
        "المدينة؟\n- لا، فأنا أحب البحر والهدوء.\n- وماذا تفعل في الشتاء؟\n- أصلح الشباك وأقرأ "
        "الكتب القديمة.\n- ومن يأتيك بالخبز؟\n- جارتي تخبز كل يوم وتعطيني رغيفا.",
        "على ضفة النهر بيت قديم،\nويأتي الربيع إليه.\nوفي الدار شيخ وطفل يتيم،\nويأتي الربيع "
        "إليه.\nيعد الليالي ويسقي الشجر،\nويحكي عن البحر بعد السفر،\nويغلق بابا بوجه "
        "المطر،\nويأتي الربيع إليه.",
    ),
}  # fmt: skip


def good() -> list[tuple[str, str, str]]:
    """(language, what it is, text)."""
    found = []
    for language, (opening, table, closing, list_, refrain) in TEXTS.items():
        for name, draw in (("grid", grid), ("pipes", pipes), ("cells", cells), ("tabs", tabs)):
            found.append((language, f"table, {name}", f"{opening}\n\n{draw(table)}\n\n{closing}\n"))
        figures = [
            [str(1960 + i), *(str(137 * i * k % 900 + 12) for k in (1, 2, 3, 5))] for i in range(12)
        ]
        found.append((language, "table of figures", f"{opening}\n\n{tabs(figures)}\n\n{closing}\n"))
        # Two tables of one shape, as a manual has them.
        other = grid([table[0], *([f"{name} 2", *rest] for name, *rest in table[:0:-1])])
        twice = f"{opening}\n\n{grid(table)}\n\n{closing}\n\n{other}\n"
        found.append((language, "two tables", twice))
        found.append((language, "list", list_ + "\n"))
        found.append((language, "refrain", refrain + "\n"))
        found.append((language, "prose", f"{opening} {closing}\n"))
    return found


SPAM = {
    "en": ("Buy cheap watches online today at the best price.", "Home\nShop\nCart\nLogin"),
    "de": ("Jetzt billige Uhren online kaufen zum besten Preis.", "Start\nShop\nKorb\nAnmelden"),
    "fr": ("Achetez des montres pas chères en ligne aujourd'hui.", "Accueil\nBoutique\nPanier"),
    "es": ("Compre relojes baratos en línea hoy al mejor precio.", "Inicio\nTienda\nCarrito"),
    "pt": ("Compre relógios baratos na internet hoje mesmo.", "Início\nLoja\nCarrinho"),
    "ru": ("Купите дешёвые часы онлайн сегодня по лучшей цене.", "Главная\nМагазин\nКорзина"),
    "zh": ("今天在网上购买便宜手表，价格最低，欢迎加微信。", "首页\n商店\n购物车"),
    "ja": ("今日オンラインで安い時計を買うなら当店が一番です。", "ホーム\nショップ\nカート"),
    "ko": ("오늘 온라인에서 싼 시계를 가장 좋은 가격에 사세요.", "홈\n상점\n장바구니"),
    "ar": ("اشتر الساعات الرخيصة عبر الإنترنت اليوم بأفضل سعر.", "الرئيسية\nالمتجر\nالسلة"),
}


def bad() -> list[tuple[str, str, str]]:
    """(language, what it is, text)."""
    found = []
    for language, (sentence, menu) in SPAM.items():
        opening, table, closing, *_ = TEXTS[language]
        words = sentence.split()[:3] if " " in sentence else [sentence[:6]]
        joint = " " if " " in sentence else ""
        found += [
            (language, "a line, six times", "\n".join([sentence] * 6) + "\n"),
            (language, "a sentence, five times", joint.join([sentence] * 5) + "\n"),
            (language, "three words, thirty times", joint.join(words * 30) + "\n"),
            (language, "a menu, eight times", "\n".join([menu] * 8) + "\n"),
            (language, "a paragraph, four times", "\n\n".join([opening] * 4) + "\n"),
            (language, "spam after prose", f"{opening}\n" + "\n".join([sentence] * 12) + "\n"),
            (language, "a row again and again", closing + "\n" + tabs([table[1]] * 40) + "\n"),
        ]
    return found
