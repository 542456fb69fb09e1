"""Constants of the elementary functions, written by `scripts/fit_functions.py`."""

LOG2_E = float.fromhex("0x1.71547652b82fep+0")
LOG2_E_LOW = float.fromhex("0x1.777d0ffda0d24p-56")
LN2_HIGH = float.fromhex("0x1.62e42fee00000p-1")
LN2_LOW = float.fromhex("0x1.a39ef35793c76p-33")
LOG10_E = float.fromhex("0x1.bcb7b1526e50ep-2")
LOG10_E_LOW = float.fromhex("0x1.95355baaafad3p-57")
LOG10_2_HIGH = float.fromhex("0x1.34413509f0000p-2")
LOG10_2_LOW = float.fromhex("0x1.e7fbcc47c4acdp-40")
ROOT_HALF_BITS = 0x3fe6a09e667f3bcd
TWO_52_BITS = 0x4330000000000000
TWO_OVER_PI = float.fromhex("0x1.45f306dc9c883p-1")
HALF_PI = (
    float.fromhex("0x1.921fb54400000p+0"),
    float.fromhex("0x1.0b4611a600000p-34"),
    float.fromhex("0x1.3198a2e037073p-69"),
)
HALF_PI_HIGH = float.fromhex("0x1.921fb54442d18p+0")
HALF_PI_LOW = float.fromhex("0x1.1a62633145c07p-54")
DIGITS_OF_TWO_OVER_PI = (10680707, 7228996, 1387004, 2578385, 16069853, 12639074, 9804092, 4427841, 16666979, 11263675, 12935607, 2387514, 4345298, 14681673, 3074569, 13734428, 16653803, 1880361, 10960616, 8533493, 3062596, 8710556, 7349940, 6258241, 3772886, 3769171, 3798172, 8675211, 12450088, 3874808, 9961438, 366607, 15675153, 9132554, 7151469, 3571407, 2607881, 12013382, 4155038, 6285869, 7677882, 13102053, 15825725, 473591, 9065106, 15363067, 6271263, 9264392, 5636912, 4652155)
EXP = (
    float.fromhex("0x1.1f72fc73183dep-29"),
    float.fromhex("0x1.af4ddd849ed1cp-26"),
    float.fromhex("0x1.27e4db67b429fp-22"),
    float.fromhex("0x1.71de0237564bep-19"),
    float.fromhex("0x1.a01a01a6d7808p-16"),
    float.fromhex("0x1.a01a01abe62ddp-13"),
    float.fromhex("0x1.6c16c16c162d6p-10"),
    float.fromhex("0x1.11111111100dfp-7"),
    float.fromhex("0x1.5555555555556p-5"),
    float.fromhex("0x1.5555555555557p-3"),
    float.fromhex("0x1.0000000000000p-1"),
)
EXP2 = (
    float.fromhex("0x1.e9d3fe3952179p-32"),
    float.fromhex("0x1.e6063f7217bc6p-28"),
    float.fromhex("0x1.b524fae627834p-24"),
    float.fromhex("0x1.62bfd47773353p-20"),
    float.fromhex("0x1.ffcbfc670dcd4p-17"),
    float.fromhex("0x1.430913096fd9fp-13"),
    float.fromhex("0x1.5d87fe78a5276p-10"),
    float.fromhex("0x1.3b2ab6fba1ddap-7"),
    float.fromhex("0x1.c6b08d704a0c2p-5"),
    float.fromhex("0x1.ebfbdff82c598p-3"),
    float.fromhex("0x1.62e42fefa39efp-1"),
)
LOG = (
    float.fromhex("0x1.e6d04c9e3c20ep-4"),
    float.fromhex("0x1.debb4432155e1p-4"),
    float.fromhex("0x1.111d3bc7f927ap-3"),
    float.fromhex("0x1.3b137abacbd15p-3"),
    float.fromhex("0x1.745d17d4e023ep-3"),
    float.fromhex("0x1.c71c71c649d29p-3"),
    float.fromhex("0x1.249249249296cp-2"),
    float.fromhex("0x1.9999999999998p-2"),
    float.fromhex("0x1.5555555555555p-1"),
)
ATAN = (
    float.fromhex("-0x1.8d087295ab9f4p-17"),
    float.fromhex("0x1.1f0adb240a1fbp-13"),
    float.fromhex("-0x1.8a2f3ae537bb1p-11"),
    float.fromhex("0x1.57cc888719aa0p-9"),
    float.fromhex("-0x1.aef1a8e977bf8p-8"),
    float.fromhex("0x1.a1fe88baf72d4p-7"),
    float.fromhex("-0x1.4b974a27ac39fp-6"),
    float.fromhex("0x1.c3ac54a572735p-6"),
    float.fromhex("-0x1.147b2825d82f6p-5"),
    float.fromhex("0x1.3d3f26d5ea7ffp-5"),
    float.fromhex("-0x1.60ebd1489b946p-5"),
    float.fromhex("0x1.854a7b99af61dp-5"),
    float.fromhex("-0x1.af00bd568a3d2p-5"),
    float.fromhex("0x1.e1dc0d7679adcp-5"),
    float.fromhex("-0x1.1110bfea8ed5ep-4"),
    float.fromhex("0x1.3b13aaf4aba4ap-4"),
    float.fromhex("-0x1.745d16f26d0a3p-4"),
    float.fromhex("0x1.c71c71c472843p-4"),
    float.fromhex("-0x1.249249248c7dap-3"),
    float.fromhex("0x1.99999999998f9p-3"),
    float.fromhex("-0x1.5555555555555p-2"),
)
SIN = (
    float.fromhex("-0x1.ab17c21adf462p-41"),
    float.fromhex("0x1.61217eed1c04ap-33"),
    float.fromhex("-0x1.ae6454129f078p-26"),
    float.fromhex("0x1.71de3a54607fap-19"),
    float.fromhex("-0x1.a01a01a019937p-13"),
    float.fromhex("0x1.1111111111110p-7"),
    float.fromhex("-0x1.5555555555555p-3"),
)
COS = (
    float.fromhex("0x1.ab784b1122af7p-45"),
    float.fromhex("-0x1.9394b9f1ce104p-37"),
    float.fromhex("0x1.1eed8deb869afp-29"),
    float.fromhex("-0x1.27e4fb7712cc8p-22"),
    float.fromhex("0x1.a01a01a019d0ap-16"),
    float.fromhex("-0x1.6c16c16c16c16p-10"),
    float.fromhex("0x1.5555555555555p-5"),
)
ERF_SLOPE = float.fromhex("0x1.20dd750429b6dp+0")
ERF_SLOPE_LOW = float.fromhex("0x1.1ae3a914fed80p-56")
ERF = (
    float.fromhex("-0x1.33d62c94107ddp-38"),
    float.fromhex("0x1.830ed95421e60p-34"),
    float.fromhex("-0x1.4f16018750568p-30"),
    float.fromhex("0x1.fc686faf628abp-27"),
    float.fromhex("-0x1.5f70026e262cep-23"),
    float.fromhex("0x1.b9e687c3e0abbp-20"),
    float.fromhex("-0x1.f4d2596fb33a0p-17"),
    float.fromhex("0x1.f9a326e5405bcp-14"),
    float.fromhex("-0x1.c02db3ffe0c21p-11"),
    float.fromhex("0x1.565bcd0e6947fp-8"),
    float.fromhex("-0x1.b82ce31288b20p-6"),
    float.fromhex("0x1.ce2f21a042be1p-4"),
    float.fromhex("-0x1.812746b0379e7p-2"),
)
NEARLY = float.fromhex("0x1.0000000000000p-37")
NEARLY_ERF = (
    float.fromhex("-0x1.2bcaa50b077a1p-81"),
    float.fromhex("0x1.bc776ad310683p-77"),
    float.fromhex("-0x1.bcf1ce091aae0p-74"),
    float.fromhex("0x1.051075c9a3712p-69"),
    float.fromhex("-0x1.0654e39319c56p-64"),
    float.fromhex("0x1.399c103d47fbfp-60"),
    float.fromhex("-0x1.3e0c75f8a39fep-56"),
    float.fromhex("0x1.4d9014bdc9d89p-52"),
    float.fromhex("-0x1.526260b826c19p-48"),
    float.fromhex("0x1.3ecd83792d022p-44"),
    float.fromhex("-0x1.19f8295a772adp-40"),
    float.fromhex("0x1.d615120041458p-37"),
    float.fromhex("-0x1.7036105d8d019p-33"),
    float.fromhex("0x1.0ed6e7dbcff0dp-29"),
    float.fromhex("-0x1.76e8531923c65p-26"),
    float.fromhex("0x1.ea97b97dc0513p-23"),
    float.fromhex("-0x1.3215d94769685p-19"),
    float.fromhex("0x1.717efe43ccab9p-16"),
    float.fromhex("-0x1.b92e95bde925dp-13"),
    float.fromhex("0x1.0dabaf0049e6fp-9"),
    float.fromhex("-0x1.69a0ccda3490bp-6"),
    float.fromhex("0x1.6a0407819c555p-2"),
)
ERFC_CENTRE = float.fromhex("0x1.0000000000000p+2")
ERFC = (
    float.fromhex("0x1.a258258de60bbp-30"),
    float.fromhex("0x1.4b285becdf595p-29"),
    float.fromhex("-0x1.f93d763641f71p-27"),
    float.fromhex("-0x1.5313af02c6ce7p-26"),
    float.fromhex("0x1.dad8579df16dep-24"),
    float.fromhex("0x1.4b57365b768b8p-24"),
    float.fromhex("-0x1.bb34490220bd6p-21"),
    float.fromhex("0x1.395e32dae2924p-22"),
    float.fromhex("0x1.7f2a83b6f787fp-18"),
    float.fromhex("-0x1.78845bcfdb3adp-17"),
    float.fromhex("-0x1.9959675eea675p-16"),
    float.fromhex("0x1.3be03d6974a4ap-13"),
    float.fromhex("-0x1.a1df24798004cp-13"),
    float.fromhex("-0x1.8d4a99f8e1195p-11"),
    float.fromhex("0x1.49c6728507cedp-8"),
    float.fromhex("-0x1.09623884f6f33p-6"),
    float.fromhex("0x1.3079edf686180p-5"),
    float.fromhex("-0x1.0fb06dfe49e43p-4"),
    float.fromhex("0x1.7fee004e123d8p-4"),
    float.fromhex("-0x1.9ddb23c3e906ep-4"),
    float.fromhex("0x1.16ecefcfa539ep-4"),
    float.fromhex("0x1.f7f5df66fd7afp-7"),
    float.fromhex("-0x1.1df1ad154a28ep-3"),
    float.fromhex("0x1.3ba5916e9fd7fp+0"),
)
