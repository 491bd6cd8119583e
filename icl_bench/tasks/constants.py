"""Constants that the compiled and the portable generator share; changing one changes every task."""

# Philox-4x32 (Salmon et al. 2011, §3.3 and its reference implementation).
PHILOX_M0 = 0xD2511F53
PHILOX_M1 = 0xCD9E8D57
PHILOX_W0 = 0x9E3779B9
PHILOX_W1 = 0xBB67AE85
ROUNDS = 10

# float32 Box–Muller: radius sqrt(−2 log u), u = (word + 1/2) / 2^32, angle 2π · word / 2^32.
WORD = 2.0**-32
ANGLE = 6.283185307179586 * 2.0**-32
LN2 = 0.6931471805599453
SQRT_HALF = 0x3F3504F3  # bits of float32 sqrt(1/2): mantissas are taken in [sqrt(1/2), sqrt(2))

# Minimax polynomials in float32, highest power first for LOG, lowest first for SIN and COS:
# log(1 + m) = m − m²/2 + m³·LOG(m); sin a = a + a³·SIN(a²) and
# cos a = 1 − a²/2 + a⁴·COS(a²) on [−π/4, π/4]. Coefficients: Cephes (Moshier), logf and sinf.
LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
SIN = (-1.6666654611e-1, 8.3321608736e-3, -1.9515295891e-4)
COS = (4.166664568298827e-2, -1.388731625493765e-3, 2.443315711809948e-5)
