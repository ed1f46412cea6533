"""Text to numbers: bytes of whole lines enter; non-zeros, names and the first fault leave.

Every function takes `text`, uint8, whose last line ends in a newline, so that a scan stops there,
and one byte more, which may be looked at.
"""

from __future__ import annotations

import math

import numpy as np

from streamtrain.kernels.jit import jit

TAB, NEWLINE, RETURN, SPACE, QUOTE, PERCENT = 9, 10, 13, 32, 34, 37
PLUS, MINUS, POINT, ZERO = 43, 45, 46, 48
# What `fault` tells of the first line that cannot be used.
FINE, VALUE, RAGGED, QUOTING, PLACE = 0, 1, 2, 3, 4
FLOAT32_MAX = float(np.finfo(np.float32).max)
POWERS = np.array([float(f"1e{k}") for k in range(309)])


@jit
def digit_at(text, p):
    """The digit at `p`, or a number outside 0 to 9 for another character."""
    return np.int64(text[p]) - ZERO


@jit
def is_blank(c):
    """Whether a byte is a blank, a tab or a carriage return."""
    return c in (SPACE, TAB, RETURN)


@jit
def after_last_line(text, start, stop):
    """Where the last whole line in [start, stop) ends; `start` where there is none."""
    while stop > start and text[stop - 1] != NEWLINE:
        stop -= 1
    return stop


@jit
def next_line(text, p, stop):
    """Where the first line in [p, stop) that is not blank begins, ends, and the blank ones before.

    The end is -1 where there is none.
    """
    n_blank, start = 0, p
    while p < stop:
        if text[p] == NEWLINE:
            if start < p - (text[p - 1] == RETURN):
                return start, p + 1, n_blank
            n_blank, start = n_blank + 1, p + 1
        p += 1
    return start, -1, n_blank


@jit
def number(text, p):
    """Read the decimal number at `p`; returns (value, where it ends), the end being p for none.

    Up to 15 digits within 22 decimal places of the point the float64 is correctly rounded, as
    mantissa and power are exact; otherwise it is off by two units in the last place at most, far
    below one of float32.
    """
    start = p
    negative = text[p] == MINUS
    if negative or text[p] == PLUS:
        p += 1
    mantissa = np.uint64(0)
    n_digits = kept = exponent = 0
    fraction = False
    while True:
        digit = digit_at(text, p)
        if 0 <= digit <= 9:
            n_digits += 1
            if kept < 19:  # what fits into 64 bits
                mantissa = mantissa * np.uint64(10) + np.uint64(digit)
                if mantissa > 0:  # zeros before the first digit do not count
                    kept += 1
                exponent -= fraction
            else:
                exponent += not fraction
        elif text[p] == POINT and not fraction:
            fraction = True
        else:
            break
        p += 1
    if n_digits == 0:
        return 0.0, start
    if text[p] == 69 or text[p] == 101:  # E, e
        end = p + 1
        below = text[end] == MINUS
        if below or text[end] == PLUS:
            end += 1
        power, first = 0, end
        while 0 <= digit_at(text, end) <= 9:
            power = min(10 * power + digit_at(text, end), 100_000)
            end += 1
        if end > first:
            exponent += -power if below else power
            p = end
    value = np.float64(mantissa)
    if exponent > 0:
        value *= POWERS[min(exponent, 308)]
    elif exponent < 0:
        value /= POWERS[min(-exponent, 308)]
        if exponent < -308:
            value /= POWERS[min(-exponent - 308, 308)]
    return -value if negative else value, p


@jit
def field(text, p, delimiter, out, n):
    """Copy the field at `p` to `out` from `n` on, without its quotes.

    Returns (where the field ends, n after it); the end is -1 where a quote is not closed on its
    line or something follows it.
    """
    if text[p] != QUOTE:
        while text[p] != delimiter and text[p] != NEWLINE:
            out[n] = text[p]
            p, n = p + 1, n + 1
        return p, n - (text[p] == NEWLINE and n > 0 and text[p - 1] == RETURN)
    p += 1
    while text[p] != QUOTE or text[p + 1] == QUOTE:  # a doubled quote stands for one
        if text[p] == NEWLINE:
            return -1, n
        p += text[p] == QUOTE
        out[n] = text[p]
        p, n = p + 1, n + 1
    p += 1
    while is_blank(text[p]) and text[p] != delimiter:
        p += 1
    return (p if text[p] == delimiter or text[p] == NEWLINE else -1), n


@jit
def split(text, delimiter, out, ends):
    """Copy the fields of the line `text` to `out` and where each ends to `ends`.

    Returns their number, or -1 where a quote is not closed.
    """
    p = n = count = 0
    while True:
        p, n = field(text, p, delimiter, out, n)
        if p < 0:
            return -1
        ends[count] = n
        count += 1
        if text[p] == NEWLINE:
            return count
        p += 1


@jit
def numbers(text, ends):
    """Tell which of the fields that end at `ends` in `text` are one number, as `parse_rows` reads.

    Returns a bool for each field.
    """
    out = np.empty(len(ends), np.bool_)
    start = 0
    for i in range(len(ends)):
        n = ends[i] - start
        one = np.empty(n + 1, np.uint8)
        one[:n], one[n] = text[start : ends[i]], NEWLINE
        p = 0
        while is_blank(one[p]):
            p += 1
        end = number(one, p)[1]
        out[i] = end > p
        while is_blank(one[end]):
            end += 1
        out[i] &= end == n
        start = ends[i]
    return out


@jit
def squeeze(text, start, stop):
    """Make each stretch of blanks outside quotes in [start, stop) one tab, in place.

    Lines begin and end without any. Returns where the text ends.
    """
    n, blank, quoted = start, False, False
    line = start  # where the line at hand begins
    for p in range(start, stop):
        c = text[p]
        if c == NEWLINE:
            blank = quoted = False
        elif not quoted and is_blank(c):
            blank = True
            continue
        elif c == QUOTE:
            quoted = not quoted
        if blank:
            if n > line:
                text[n] = TAB
                n += 1
            blank = False
        text[n] = c
        n += 1
        if c == NEWLINE:
            line = n
    return n


@jit
def parse_rows(text, p, stop, delimiter, named, n_cols, data, indices, indptr, names, ends, fault):
    """Read the lines in [p, stop) of a table of `n_cols` numbers a row as compressed sparse rows.

    Where `named`, the first field names the row: its bytes go to `names`, and where they end to
    `ends`. Blank lines are skipped, and so is a delimiter after the last number. `fault` gets
    (kind, lines before it, field, start, stop), the bytes of the value for VALUE, or the number of
    fields found for RAGGED.

    Returns the number of rows and of lines.
    """
    row = n = n_lines = n_bytes = 0
    indptr[0] = 0
    while p < stop:
        if text[p] == NEWLINE or (text[p] == RETURN and text[p + 1] == NEWLINE):
            p += 1 + (text[p] == RETURN)
            n_lines += 1
            continue
        begin = p
        col = 0
        more = True
        if named:
            p, n_bytes = field(text, p, delimiter, names, n_bytes)
            if p < 0:
                fault[0], fault[1], fault[3] = QUOTING, n_lines, begin
                return row, n_lines
            ends[row] = n_bytes
            more = text[p] != NEWLINE
            p += 1
        while more:
            # Nearly all of a table of counts is single digits: no branch on which of them.
            while text[p + 1] == delimiter and ZERO <= text[p] <= ZERO + 9:
                digit = digit_at(text, p)
                data[n], indices[n] = digit, col
                n += digit > 0
                p, col = p + 2, col + 1
            start = p
            while is_blank(text[p]) and text[p] != delimiter:
                p += 1
            if text[p] == NEWLINE and col == n_cols > 0:  # the line ends in a delimiter
                p += 1
                break
            quoted = text[p] == QUOTE
            p += quoted
            value, end = number(text, p)
            good = end > p and math.fabs(value) <= FLOAT32_MAX
            p = end
            if quoted:
                good &= text[p] == QUOTE
                p += text[p] == QUOTE
            while is_blank(text[p]) and text[p] != delimiter:
                p += 1
            more = text[p] == delimiter
            if not good or not (more or text[p] == NEWLINE):
                while text[p] != delimiter and text[p] != NEWLINE:
                    p += 1
                fault[0], fault[1], fault[2], fault[3], fault[4] = VALUE, n_lines, col, start, p
                return row, n_lines
            data[n], indices[n] = value, col
            n += value != 0
            p, col = p + 1, col + 1
        if col != n_cols:
            fault[0], fault[1], fault[2] = RAGGED, n_lines, col
            return row, n_lines
        n_lines += 1
        row += 1
        indptr[row] = n
    return row, n_lines


@jit
def _position(text, p):
    """Read a whole number after blanks; returns (number, where it ends), -1 for none."""
    while is_blank(text[p]):
        p += 1
    found, first = 0, p
    while 0 <= digit_at(text, p) <= 9:
        found = min(10 * found + digit_at(text, p), 1 << 40)
        p += 1
    return (found if p > first else -1), p


@jit
def parse_entries(text, p, stop, by_gene, pattern, places, counts, cells, genes, values, fault):
    """Read the lines in [p, stop) of a coordinate matrix as entries, counted from 0.

    Where `by_gene`, a line gives the gene first, else the cell. `places` gives the column of each
    gene, -1 to leave it out. Adds each cell's entries to `counts`. Lines that are blank or begin
    with % are skipped. `fault` gets (kind, lines before it, 0, start, stop): VALUE for a line that
    is no entry, PLACE for one outside the matrix.

    Returns the number of entries written, of those read and of lines.
    """
    n = n_read = n_lines = 0
    while p < stop:
        begin = p
        first, p = _position(text, p)
        if first >= 0:
            second, p = _position(text, p)
            good = second >= 0
            value = 1.0
            if not pattern:
                good &= is_blank(text[p])
                while is_blank(text[p]):
                    p += 1
                value, end = number(text, p)
                good &= end > p and math.fabs(value) <= FLOAT32_MAX
                p = end
        else:
            good = text[p] == PERCENT or text[p] == NEWLINE or text[p] == RETURN
        while is_blank(text[p]):
            p += 1
        good &= text[p] == NEWLINE or text[p] == PERCENT
        while text[p] != NEWLINE:
            p += 1
        if not good:
            fault[0], fault[1], fault[3], fault[4] = VALUE, n_lines, begin, p
            return n, n_read, n_lines
        if first >= 0:
            gene, cell = (first, second) if by_gene else (second, first)
            if not (1 <= gene <= len(places) and 1 <= cell <= len(counts)):
                fault[0], fault[1], fault[3], fault[4] = PLACE, n_lines, begin, p
                return n, n_read, n_lines
            n_read += 1
            if places[gene - 1] >= 0:
                counts[cell - 1] += 1
                cells[n], genes[n], values[n] = cell - 1, places[gene - 1], value
                n += 1
        p += 1
        n_lines += 1
    return n, n_read, n_lines


@jit
def ascends(values, last):
    """Tell whether `values` never fall, nor begin below `last`."""
    for value in values:
        if value < last:
            return False
        last = value
    return True
