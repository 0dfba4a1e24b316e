"""What a building and its surroundings can look like, and how people put it into words.

A *fact* is `slot=value`, such as `roof=hip`. Each value has a weight (with long tails), plain
phrasings, as a layman says it, and professional ones, as an architect does. No phrase belongs to
two facts. A value without phrasings is the unremarkable default that nobody mentions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Speech = Literal["plain", "professional"]
Kind = Literal["modifier", "storeys", "noun", "clause", "style"]


@dataclass(frozen=True)
class Value:
    """One value of a slot."""

    weight: float
    plain: tuple[str, ...] = ()
    professional: tuple[str, ...] = ()


@dataclass(frozen=True)
class Slot:
    """One thing that can vary.

    Attributes:
        kind: the part of a sentence that its phrases are.
        values: by key, in a fixed order.
        salience: how likely people are to mention it, relative to the others: what is large and
            striking comes first.
        coverage: share of the mark that must lie in the picture for the fact to be seen.
    """

    kind: Kind
    values: Mapping[str, Value]
    salience: float = 1.0
    coverage: float = 0.6


def _say(plain: str = "", professional: str = "", *, weight: float) -> Value:
    return Value(weight, tuple(plain.split()), tuple(professional.split()))


BUILDING: Final[Mapping[str, Slot]] = {
    "roof": Slot(
        "modifier",
        {
            "hip": _say("四面坡屋顶 四面都是斜坡的屋顶", "庑殿顶 四阿顶", weight=14),
            "hip_gable": _say(
                "带小三角的坡屋顶 斜坡上又有个三角的屋顶", "歇山顶 九脊顶", weight=12
            ),
            "overhanging": _say("比墙宽的两面坡屋顶 两头伸出墙外的屋顶", "悬山顶 挑山顶", weight=8),
            "flush": _say("和墙一样宽的两面坡屋顶 两头被墙夹住的屋顶", "硬山顶", weight=8),
            "rolled": _say("没有脊的圆弧屋顶 顶上圆圆滚过去的屋顶", "卷棚顶 元宝脊", weight=5),
            "pyramid": _say("收成一个尖的屋顶 像撑开的伞一样的屋顶", "攒尖顶 斗尖顶", weight=9),
            "truncated": _say("中间平四边斜的屋顶 斜坡上面切平的屋顶", "盝顶", weight=3),
            "gable": _say("三角形屋顶 正面是三角的屋顶", "人字坡山面 双坡山墙", weight=11),
            "dome": _say("圆顶 像半个球的屋顶", "穹隆 穹顶", weight=8),
            "onion": _say("洋葱形的屋顶 像大蒜头的屋顶", "葱头穹", weight=2.5),
            "spire": _say("又高又细的尖顶 像针一样的尖顶", "哥特尖塔 锥形塔尖", weight=5),
            "flat": _say("平屋顶 平平的屋顶", "女儿墙平屋面 平屋面", weight=12),
            "sawtooth": _say(
                "锯齿形屋顶 像锯子一样的屋顶", "北向采光屋面 锯齿天窗屋面", weight=2.5
            ),
            "vault": _say("半圆筒形的屋顶 像切开的圆筒的屋顶", "筒拱屋面", weight=3),
            "mansard": _say("上缓下陡的屋顶 折成两段的屋顶", "孟莎顶 复折屋顶", weight=4),
            "shed": _say("一面斜的屋顶 一边高一边低的屋顶", "单坡屋面", weight=4),
            "butterfly": _say("中间低两边高的屋顶 像翅膀的屋顶", "蝶形屋面 V形屋面", weight=1.2),
            "battlement": _say("有城墙垛子的屋顶 一个个缺口的墙顶", "雉堞", weight=2),
        },
        salience=3.2,
        coverage=0.75,
    ),
    "tiles": Slot(
        "modifier",
        {
            "grey": _say("灰瓦 灰色屋顶", "布瓦", weight=24),
            "black": _say("黑瓦 黑色屋顶", "黛瓦", weight=12),
            "red": _say("红瓦 红色屋顶", "机制陶瓦", weight=16),
            "yellow": _say("黄瓦 黄色屋顶", "明黄琉璃", weight=9),
            "green": _say("绿瓦 绿色屋顶", "碧琉璃", weight=8),
            "thatch": _say("茅草屋顶 干草盖的顶", "茅茨", weight=4),
            "blue": _say("蓝瓦 蓝色屋顶", "霁青琉璃", weight=3),
            "purple": _say("紫色屋顶", "紫铜屋面", weight=1.2),
        },
        salience=2.0,
        coverage=0.6,
    ),
    "storeys": Slot(
        "storeys",
        {
            "1": _say("一层", "一层", weight=30),
            "2": _say("两层", "两层", weight=25),
            "3": _say("三层", "三层", weight=14),
            "4": _say("四层", "四层", weight=8),
            "5": _say("五层", "五层", weight=5),
            "7": _say("七层", "七层", weight=3),
            "9": _say("九层", "九层", weight=1.5),
        },
        salience=0.8,
        coverage=0.95,
    ),
    "wall": Slot(
        "noun",
        {
            "red_wood": _say("红色木房子 红木头房子", "朱漆木构 朱漆梁架", weight=15),
            "brown_wood": _say("棕色木房子 原木色的木房子", "素面木构 井干木构", weight=9),
            "grey_brick": _say("灰砖房子 灰砖楼", "磨砖对缝墙体", weight=11),
            "red_brick": _say("红砖房子 红砖楼", "英式砌法砖构", weight=10),
            "white": _say("白墙房子 白房子", "粉壁", weight=14),
            "stone": _say("石头房子 石块垒的房子", "方整石砌筑体", weight=8),
            "concrete": _say("水泥房子 水泥楼", "清水混凝土", weight=6),
            "glass": _say("玻璃房子 全是玻璃的楼", "玻璃幕墙", weight=6),
            "earth": _say("黄土房子 泥墙房子", "夯土版筑", weight=4),
            "yellow": _say("黄墙房子 黄房子", "赭黄抹灰墙体", weight=4),
            "pink": _say("粉红色房子", "藕荷色抹灰墙体", weight=2.5),
            "blue": _say("蓝墙房子 蓝房子", "靛蓝面砖墙体", weight=2),
            "green": _say("绿墙房子 绿房子", "铜绿金属板", weight=1.5),
            "rust": _say("铁锈色的房子", "耐候钢板", weight=1.2),
        },
        salience=1.4,
        coverage=0.5,
    ),
    "windows": Slot(
        "clause",
        {
            "square": _say("方窗 四四方方的窗", "平开窗", weight=26),
            "arched": _say("圆头窗 上面圆的窗户", "半圆券窗", weight=12),
            "pointed": _say("尖头窗 上面尖的窗户", "尖券窗", weight=6),
            "lattice": _say("花格子窗 一格一格的木窗", "棂花槅扇", weight=12),
            "round": _say("圆窗 圆圆的窗户", "牛眼窗", weight=6),
            "rose": _say("又大又圆的彩色花窗 墙上一朵花似的大圆窗", "玫瑰窗", weight=4),
            "strip": _say("横着的长条窗 一道道横窗", "带形窗", weight=7),
            "slit": _say("竖着的细长窗 一条条竖窗", "直棂窗", weight=5),
            "shutters": _say("蓝木板窗 两边有蓝木板的窗", "百叶窗扇", weight=4),
            "blank": _say("没有窗户 墙上不开窗", "实墙面", weight=4),
        },
        salience=0.4,
    ),
    "door": Slot(
        "clause",
        {
            "single": _say(weight=24),
            "red_double": _say("红色大门 两扇红大门", "实榻门", weight=12),
            "arch": _say("拱形的门 上面圆的门", "券门", weight=10),
            "moon": _say("圆门洞 像月亮一样圆的门", "月洞门", weight=6),
            "pediment": _say("门口有三角门头 门上顶着白色三角", "山花门廊", weight=6),
            "glazed": _say("玻璃大门 宽宽的玻璃门", "通高门斗", weight=5),
            "triple": _say("三个拱形门洞 并排三个门洞", "三券洞", weight=3.5),
        },
        salience=0.35,
    ),
    "base": Slot(
        "clause",
        {
            "none": _say(weight=36),
            "steps": _say("门前有台阶 要走台阶上去", "垂带踏跺", weight=14),
            "sumeru": _say("下面是层层白石台 立在白色石台上", "须弥座", weight=8),
            "stilts": _say("架在木桩上 下面用木桩撑着", "干栏式", weight=5),
            "pilotis": _say("底下空着用柱子撑起来 下面一层是空的", "底层架空", weight=5),
            "plinth": _say("石头墙脚 墙根是石块", "毛石勒脚", weight=9),
        },
        salience=1.4,
    ),
    "columns": Slot(
        "clause",
        {
            "none": _say(weight=44),
            "red_row": _say("门前一排红柱子 一排红色的柱子", "檐柱前廊", weight=12),
            "white_row": _say("门前一排白柱子 一排白色圆柱", "多立克列柱", weight=8),
            "arcade": _say("一楼是一排拱洞 下面一个接一个的拱", "连续券廊", weight=5),
            "pair": _say("门口两根大柱子 大门两边各一根柱子", "双柱门罩", weight=5),
        },
        salience=0.4,
    ),
    "eaves": Slot(
        "clause",
        {
            "single": _say(weight=50),
            "double": _say("屋檐有上下两道 两道屋檐", "重檐", weight=14),
            "triple": _say("屋檐有三道 三道屋檐", "三滴水", weight=4),
        },
        salience=0.6,
    ),
    "corner": Slot(
        "clause",
        {
            "straight": _say(weight=40),
            "flying": _say("屋角高高翘起 屋角往上弯", "飞檐翼角", weight=16),
        },
        salience=0.3,
    ),
    "crown": Slot(
        "clause",
        {
            "none": _say(weight=40),
            "beasts": _say("屋顶两头有翘起的装饰 屋顶两端卷起来", "鸱吻", weight=9),
            "finial": _say("屋顶上有颗金珠子 顶上有个金球", "宝顶", weight=8),
            "cross": _say("顶上有十字架", "十字刹", weight=4),
            "flag": _say("屋顶插着红旗", "旗杆座", weight=4),
            "chimney": _say("屋顶有烟囱", "砖砌烟道", weight=8),
            "dormers": _say("屋顶上开着小窗 屋顶斜面上有小窗户", "老虎窗", weight=6),
        },
        salience=0.5,
    ),
    "detail": Slot(
        "clause",
        {
            "none": _say(weight=40),
            "lanterns": _say("挂着红灯笼 屋檐下有红灯笼", "宫灯", weight=7),
            "plaque": _say("门上挂着牌子 大门上方有块牌子", "匾额", weight=6),
            "balcony": _say("有阳台 墙上伸出阳台", "挑台勾栏", weight=7),
            "awning": _say("门口有彩色布棚 红白条的布棚", "遮阳篷", weight=4),
            "ivy": _say("墙上爬满绿藤 长满了爬墙的藤", "垂直绿化", weight=5),
            "brackets": _say("屋檐下有一层层木块 屋檐下彩色的木块", "斗拱", weight=6),
            "buttress": _say("墙边有斜撑 两边斜着撑住墙", "飞扶壁", weight=3),
            "stepped": _say("两边是阶梯形的高墙 一级一级高出屋顶的墙", "马头墙", weight=5),
            "clock": _say("墙上有大钟", "钟盘", weight=2.5),
        },
        salience=0.4,
    ),
    "wings": Slot(
        "clause",
        {
            "none": _say(weight=50),
            "low": _say("两边连着矮房子 左右各有一间矮屋", "两翼耳房", weight=10),
            "tower": _say("一边连着高塔 旁边带一座塔楼", "角楼", weight=6),
        },
        salience=0.6,
    ),
}
"""What belongs to the building itself and stays the same in all its pictures."""

SURROUNDINGS: Final[Mapping[str, Slot]] = {
    "weather": Slot(
        "clause",
        {
            "day": _say(weight=44),
            "sun": _say("天上有太阳 大太阳", "正午日照", weight=6),
            "dusk": _say("傍晚 天边是晚霞", "暮色", weight=10),
            "night": _say("晚上亮着灯 夜里", "泛光照明", weight=10),
            "fog": _say("大雾 雾蒙蒙的", "烟岚", weight=5),
            "rain": _say("下着雨 下雨天", "雨景", weight=5),
            "snow": _say("下雪了 满地是雪", "雪景", weight=8),
        },
        salience=2.4,
    ),
    "ground": Slot(
        "clause",
        {
            "grass": _say("门前是草地 草坪上", "草坪铺地", weight=28),
            "paved": _say(weight=20),
            "water": _say("门前有水 前面是水塘", "临水理景", weight=13),
            "sand": _say("沙地上 前面都是沙子", "砂砾铺地", weight=4),
            "flowers": _say("前面是花田 门前一大片花", "花境", weight=4),
        },
        salience=2.0,
    ),
    "backdrop": Slot(
        "clause",
        {
            "none": _say(weight=36),
            "mountains": _say("后面有山 背后是大山", "背倚远岫", weight=14),
            "city": _say("后面是很多高楼 背后是城市", "都市天际线", weight=8),
            "forest": _say("后面是树林 背后一片林子", "林带背景", weight=8),
            "bamboo": _say("后面是竹子 背后有竹林", "修篁", weight=3),
            "pagoda": _say("远处有宝塔 远处有一座塔", "浮屠对景", weight=2.5),
        },
        salience=2.0,
    ),
    "tree": Slot(
        "clause",
        {
            "none": _say(weight=34),
            "round": _say("旁边有棵大树 有一棵绿树", "孤植乔木", weight=15),
            "pine": _say("旁边有松树 有一棵松树", "雪松配植", weight=7),
            "bare": _say("旁边有棵没叶子的树 光秃秃的树", "枯木", weight=5),
            "blossom": _say("旁边有棵开花的树 开满粉花的树", "樱花配植", weight=5),
            "autumn": _say("旁边有棵黄叶的树 叶子黄了的树", "秋色叶乔木", weight=4),
            "palm": _say("旁边有椰子树 有一棵椰树", "棕榈科乔木", weight=2),
        },
        salience=2.2,
    ),
    "people": Slot(
        "clause",
        {
            "none": _say(weight=44),
            "one": _say("前面站着一个人 有一个人", "单人尺度参照", weight=10),
            "few": _say("前面有几个人 有几个人", "多人尺度参照", weight=8),
            "crowd": _say("前面有很多人 人群", "集散人流", weight=4),
        },
        salience=0.5,
    ),
    "object": Slot(
        "clause",
        {
            "none": _say(weight=34),
            "boat": _say("水上有小船 停着一只船", "画舫", weight=5),
            "bridge": _say("前面有石桥 门前有座桥", "单孔券桥", weight=5),
            "lions": _say("门前有两只石狮子 一对石狮子", "镇门石兽", weight=6),
            "car": _say("前面停着汽车 有一辆车", "落客区车辆", weight=6),
            "lamp": _say("前面有路灯", "庭院灯柱", weight=4),
            "fence": _say("前面有木栅栏 围着木栏杆", "篱垣", weight=5),
            "gateway": _say("前面立着牌楼一样的大门架 前面有大门架子", "棂星门坊", weight=4),
            "screen": _say("前面有一堵短墙 门前挡着一堵墙", "照壁", weight=3),
            "fountain": _say("前面有喷泉", "水法", weight=3),
        },
        salience=2.0,
    ),
    "style": Slot(
        "style",
        {
            "photograph": _say(weight=80),
            "line": _say("黑白线条画 用线条画的图", "立面线稿", weight=7),
            "blueprint": _say("蓝底白线的图", "晒蓝图", weight=4),
            "section": _say("切开看里面的图 房子切开的样子", "剖面图", weight=6),
            "ink": _say("水墨画 毛笔画", "水墨渲染图", weight=4),
        },
        salience=3.0,
    ),
}
"""What may differ between two pictures of one building."""

NEIGHBOUR: Final[Mapping[str, Slot]] = {
    f"neighbour_{name}": Slot(
        "clause",
        {
            key: Value(
                value.weight,
                tuple(plain + phrase for phrase in value.plain[:1]),
                tuple(professional + phrase for phrase in value.professional[:1]),
            )
            for key, value in BUILDING[name].values.items()
        },
        salience=0.3,
        coverage=BUILDING[name].coverage,
    )
    for name, plain, professional in (
        ("roof", "旁边那座是", "毗邻建筑为"),
        ("wall", "旁边是", "毗邻"),
    )
}
"""Of a second building in the scene."""

SLOTS: Final[Mapping[str, Slot]] = {**BUILDING, **SURROUNDINGS, **NEIGHBOUR}

CHINESE_ROOFS: Final = frozenset(
    {"hip", "hip_gable", "overhanging", "flush", "rolled", "pyramid", "truncated"}
)

FITTING: Final[Mapping[str, frozenset[str]]] = {
    "eaves=double": CHINESE_ROOFS - {"flush", "overhanging"},
    "eaves=triple": CHINESE_ROOFS - {"flush", "overhanging"},
    "corner=flying": CHINESE_ROOFS - {"flush", "overhanging", "rolled"},
    "crown=beasts": frozenset({"hip", "hip_gable", "overhanging", "flush"}),
    "crown=finial": frozenset({"pyramid", "dome", "onion", "spire"}),
    "crown=cross": frozenset({"gable", "dome", "onion", "spire"}),
    "crown=chimney": frozenset({"gable", "flat", "shed", "mansard", "overhanging", "vault"}),
    "crown=dormers": frozenset({"overhanging", "flush", "mansard", "hip"}),
    "detail=stepped": frozenset({"flush", "overhanging", "rolled"}),
    "detail=brackets": CHINESE_ROOFS,
}
"""Which roofs a fact of the same building needs; those not listed fit every roof."""


def phrases(fact: str, speech: Speech) -> tuple[str, ...]:
    """Return the phrasings of a fact, none if nobody mentions it.

    Raises:
        KeyError: there is no such fact.
    """
    slot, _, key = fact.partition("=")
    value = SLOTS[slot].values[key]
    return value.plain if speech == "plain" else value.professional


def vocabulary(speech: Speech) -> frozenset[str]:
    """Return every phrase that only this way of speaking uses (numbers of storeys are shared)."""
    return frozenset(
        phrase
        for slot, spec in SLOTS.items()
        if slot != "storeys"
        for key in spec.values
        for phrase in phrases(f"{slot}={key}", speech)
    )
