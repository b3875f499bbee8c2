"""References as MATH, GSM8K, AIME, DAPO-Math and multiple-choice data have them, with right and wrong answers each.

Every reference, boxed, is right as well; that is not repeated here.
"""

from typing import Final

# reference, answers that are right, answers that are wrong
PAIRS: Final[tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]] = (
    # Integers and decimals
    ("72", ("72.0", "72.", "$72$", "+72", r"72\text{ clips}", "72 clips"), ("73", "-72", "7.2", "720", "7,2")),
    ("-3", ("-3.0", r"-\frac{6}{2}", "− 3".replace("− ", "-")), ("3", "-30")),
    ("0", ("0.0", "5-5"), ("1", "-1", "00001")),
    ("0.75", (r"\frac{3}{4}", "3/4", ".75", "75\\%"), ("0.57", r"\frac{4}{3}")),
    (".5", ("0.5", r"\frac12", "1/2"), ("5", "0.05")),
    ("204", ("204",), ("240", "20.4", "024")),
    ("025", ("25", "25.0"), ("250", "52")),
    # Thousands
    ("1,234", ("1234", "1{,}234", "1\\,234", "1 234"), ("1.234", "1235", "234", "12,34")),
    (r"10\,000", ("10000", "10,000", "10{,}000"), ("0", "10", "1000")),
    ("1{,}000{,}000", ("1000000", "10^6", "1,000,000"), ("1000", "100000")),
    ("2,500.50", ("2500.5", "2500.50"), ("2500", "2.5005")),
    # Fractions and mixed numbers
    (r"\frac{3}{4}", ("0.75", "3/4", r"\dfrac{3}{4}", r"\tfrac34", r"\frac{6}{8}"), (r"\frac{4}{3}", "3", "0.34")),
    (r"\dfrac{7}{3}", (r"\frac73", r"2\frac{1}{3}", "7/3"), ("2.3", "7", r"\frac{3}{7}")),
    (r"1\frac{1}{2}", ("1.5", "3/2", r"\frac{3}{2}"), ("1", r"\frac{1}{2}", "11/2")),
    (r"-\frac{1}{6}", ("-1/6", r"\frac{-1}{6}"), (r"\frac{1}{6}", "-6")),
    ("3/4", (r"\frac{3}{4}", "0.75"), ("3", "4/3")),
    # Percentages, currency, degrees, units
    (r"50\%", ("50%", "50", "0.5"), ("5%", "55\\%", "0.05")),
    ("12.5%", (r"12.5\%", "12.5"), ("125", "1.25%")),
    (
        r"\$12.50",
        ("12.5", "$12.50", r"\$12.5", "12.50 dollars"),
        ("12.05", "1250", r"\$12.51", "12.50 cents", "€12.50"),
    ),
    ("$18", ("18", r"\$18", "18.00", r"18\text{ dollars}"), ("81", "$1.8", "18 cents", r"18\%")),
    ("-$18", ("-18", r"-\$18"), ("18", r"\$18")),
    (r"90^\circ", ("90", r"90^{\circ}", "90 degrees", "90°"), ("9", r"80^\circ", "90 rad", "90 radians")),
    (r"20^\circ\text{C}", ("20", "20 C", "20°C"), (r"20^\circ\text{F}", "21 C")),
    ("5 m", ("5", "5m", "5 meters", r"5\text{ m}"), ("5 s", "5 cm", "5s", "6 m", "5 km")),
    ("5 cm", ("5", "5cm", "5 centimeters"), ("5 m", "5m", "5 mm")),
    ("5 g", ("5", "5 grams"), ("5 kg", "5 m")),
    ("2 h", ("2", "2 hours", "2 hrs"), ("2 s", "2 min")),
    ("5x", ("5 x", "x5".replace("x5", r"5 \cdot x")), ("5", "5y", "5 m")),
    ("12 square feet", ("12", "12 ft^2", "12 sq. ft"), ("12 ft", "12 cubic feet", "12 square meters")),
    ("60 km/h", ("60", "60 kilometers per hour", r"60\text{ km/h}"), ("60 m/s", "60 km")),
    (r"12\text{ cm}", ("12", "12 cm", r"12\,\text{cm}", r"12\mathrm{cm}"), (r"12\text{ m}", "13", r"21\text{ cm}")),
    (r"5\text{ cm}^2", ("5", r"5\text{ cm}^{2}"), (r"5\text{ cm}^3", r"25\text{ cm}^2")),
    (r"36\pi\text{ cubic inches}", (r"36\pi", r"36 \pi"), ("36", r"36\pi\text{ cubic feet}")),
    ("5 apples", ("5", r"5\text{ apples}"), ("6 apples", "5 pears")),
    ("30 minutes", ("30", "30 minutes"), ("30 hours", "3")),
    # Roots, powers, constants
    (r"3\sqrt{2}", (r"\sqrt{18}", r"3 \cdot \sqrt{2}", r"3\sqrt2"), ("3", r"\sqrt{2}", r"2\sqrt{3}", "4.24")),
    (r"\sqrt{51}", (r"\sqrt{51}", r"51^{1/2}"), ("51", r"\sqrt{15}", "7")),
    (r"\frac{\sqrt{3}}{2}", (r"\frac{1}{2}\sqrt{3}", r"\sqrt{\frac{3}{4}}"), (r"\frac{3}{2}", r"\sqrt{3}")),
    ("3^{10}", ("59049", r"9^5"), ("3", "10", "3^{11}", "30")),
    ("10^{-3}", ("0.001", r"\frac{1}{1000}"), ("-1000", "1000")),
    (r"\pi", (r"\pi",), ("3", "3.14", r"2\pi")),
    (r"\frac{\pi}{6}", (r"\pi/6", r"\frac{1}{6}\pi"), (r"\frac{\pi}{3}", r"\frac16")),
    (r"\infty", (r"\infty", r"+\infty"), (r"-\infty", "0")),
    ("e^2", ("e^{2}", r"e \cdot e"), ("2e", "e")),
    ("2^{100}", (r"4^{50}",), ("2^{101}", "200")),
    ("5!", ("120",), ("5", "24")),
    (r"\binom{5}{2}", ("10",), ("20", "5")),
    (r"\log_2 3", (r"\frac{\ln 3}{\ln 2}", r"\log_{2}{3}"), (r"\log_3 2", "3")),
    ("1e5", ("100000", r"10^5", "1 e5".replace(" ", "")), ("15", "1", "1e4")),
    (r"3 \times 10^8", ("300000000", r"3\cdot10^{8}", "3e8"), (r"3\times10^7", "30")),
    # Complex numbers
    ("6 - 5i", ("6-5i", "-5i+6"), ("6", "6+5i", "5-6i", "1")),
    ("i", ("i",), ("-i", "1")),
    (r"\frac{1}{2} + \frac{\sqrt{3}}{2}i", (r"\frac{1+\sqrt{3}i}{2}",), (r"\frac{1}{2}", r"\frac{1-\sqrt{3}i}{2}")),
    # Expressions, equations, inequalities
    ("2x+3", ("3+2x", "2x + 3", "2(x+1)+1"), ("2x", "3", "2x-3", "2y+3")),
    ("p - q", ("-q+p", "p-q"), ("q-p", "p", "p+q")),
    ("x^2+2x+1", ("(x+1)^2", "1+2x+x^2"), ("(x-1)^2", "x^2+1")),
    (r"\frac{x+1}{x-1}", (r"\frac{1+x}{x-1}",), (r"\frac{x-1}{x+1}", "x+1")),
    ("x=5", ("5", "x = 5"), ("6", "x=6", "x=-5")),
    ("y = 2x+1", ("y=1+2x", "2x+1"), ("y=2x-1", "x=2y+1")),
    (r"x \le 2", (r"x\leq 2", r"2 \ge x"), ("x < 2", r"x \ge 2")),
    ("x>3", ("3<x",), ("x<3", "x>4")),
    (r"\sin x", (r"\sin(x)", r"\sin{x}"), (r"\cos x", "x")),
    (r"n\pi", (r"\pi n",), (r"\pi", "n")),
    ("xy", ("yx", r"x \cdot y"), ("x", "x+y")),
    (r"x^2 + y^2 = 4", ("y^2+x^2=4",), ("x^2+y^2=2", "4")),
    # Points, tuples, intervals, sets, unions
    ("(1,2)", ("(1, 2)", r"\left(1,2\right)"), ("(2,1)", "[1,2]", "1", "(1,2,3)")),
    (r"\left(3, \frac{\pi}{2}\right)", (r"(3,\pi/2)",), (r"(\frac{\pi}{2},3)", r"(3,\pi)", "3")),
    ("(1, -2, 3)", (r"\left(1,-2,3\right)",), ("(1,2,3)", "(3,-2,1)")),
    ("[0,1]", (r"\left[0,1\right]",), ("(0,1)", "[0,1)", "[1,0]", "0")),
    (r"(-\infty, 3]", (r"(-\infty,3]",), (r"(-\infty,3)", r"(3,\infty)")),
    (
        r"(-\infty,2)\cup(3,\infty)",
        (r"(3,\infty)\cup(-\infty,2)",),
        (r"(-\infty,3)\cup(2,\infty)", r"(-\infty,2)"),
    ),
    (r"\{1,2\}", (r"\{2,1\}", r"\left\{1, 2\right\}"), (r"\{1,3\}", "1", r"\{1\}")),
    ("2,4,6", ("2, 4, 6", "6,4,2", r"\{2,4,6\}"), ("2,4", "2,4,6,8", "246")),
    (r"2 \text{ and } 3", ("2, 3", "3,2", "2 and 3"), ("2", "2,4")),
    (r"2\pm\sqrt{3}", (r"2+\sqrt{3}, 2-\sqrt{3}",), (r"2+\sqrt{3}", r"3\pm\sqrt{2}")),
    (r"\emptyset", (r"\emptyset",), ("0", r"\{0\}")),
    (r"\mathbb{R}", (r"\mathbb{R}", r"(-\infty,\infty)"), (r"\mathbb{Z}", r"(0,\infty)")),
    # Matrices and vectors
    (
        r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}",
        (r"\begin{bmatrix} 1&2\\3&4 \end{bmatrix}", r"\begin{pmatrix}1 & 2\\ 3 & \frac{8}{2}\end{pmatrix}"),
        (r"\begin{pmatrix} 1 & 3 \\ 2 & 4 \end{pmatrix}", "1", r"\begin{pmatrix} 1 \\ 3 \end{pmatrix}"),
    ),
    (
        r"\begin{pmatrix} -1 \\ 2 \end{pmatrix}",
        (r"\begin{bmatrix}-1\\2\end{bmatrix}",),
        (r"\begin{pmatrix} 2 \\ -1 \end{pmatrix}", "-1"),
    ),
    # Ratios, times, bases
    ("3:2", ("3:2", "6:4"), ("2:3", "3")),
    ("10:30", ("10:30",), ("10", "1/3", "30:10", "10:31")),
    ("9:05 a.m.", ("9:05 am", r"9:05\text{ a.m.}", "09:05 AM"), ("9:50 a.m.", "9:05 p.m.")),
    ("12_{8}", ("12_8", "12", r"12_{8}"), ("12_7", "10", "21_8")),
    ("1011_2", ("1011_{2}", "1011"), ("1101_2", "11")),
    # Words
    ("Evelyn", (r"\text{Evelyn}", "evelyn", "Evelyn."), ("Evleyn", "Carla", "E")),
    (r"\text{even}", ("even", "Even"), (r"\text{odd}", "neve", "eve")),
    ("listen", ("Listen",), ("silent", "enlist")),
    ("No", ("no", r"\text{No}"), ("Yes", "On", "n")),
    ("Monday", (r"\text{Monday}",), ("Sunday", r"\text{Tuesday}")),
    (r"\text{ellipse}", ("ellipse", r"\textbf{ellipse}"), ("circle", r"\text{hyperbola}")),
    ("New York", (r"\text{New York}", "new york"), ("York", "New Jersey")),
    # Options
    ("A", ("(A)", r"\text{A}", r"\text{(A)}", "a", "A.", "A) 12", r"\textbf{(A)}"), ("B", "(C)", "AB", "12")),
    (r"\text{(B)}", ("B", "(B)", r"\text{B}", r"\textbf{(B)}\ 7"), ("A", r"\text{(C)}", "b+1", "7")),
    ("(D)", ("D", r"\mathrm{D}", r"\text{(D) } 42"), ("(E)", "4")),
    (r"\textbf{(C)}\ 5", ("C", "(C)", r"\text{(C)}"), ("B", "6", "(A) 5")),
    # Boxed and dollared reference columns
    (r"\boxed{42}", ("42",), ("24", "4")),
    (r"$\frac{1}{3}$", ("1/3", r"\dfrac13"), ("3", "0.33")),
    ("#### 18", ("18",), ("81", "1")),
)
