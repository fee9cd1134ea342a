//! Decodes the Huffman code of RFC 7541 §5.2 half an octet at a time, with a table that is built at compile time.
//! There is no encoder: within a cluster bytes are cheaper than the CPU that would spare them, and nearly all fields of
//! a link are an index anyway.

use super::DecodeError;

/// How many bits each octet's code has, and last that of the end-of-string symbol. Source: RFC 7541 Appendix B. The
/// code is canonical: shorter codes come first and codes of one length go in the order of their symbols, so the lengths
/// say all.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28,
    28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12,
    10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6,
    5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22,
    22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20,
    22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28,
    27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28,
    27, 27, 27, 27, 27, 26, 30,
];

const EOS: usize = 256;

/// Each symbol's code, in the lowest bits.
pub(super) const CODES: [(u32, u8); 257] = codes();

/// A node of the code's tree is a state: 256 have children, for the tree has 257 leaves. The root is 0.
static STEPS: [[Step; 16]; 256] = steps();

/// What four more bits do.
#[derive(Clone, Copy)]
struct Step {
    next: u8,
    /// What they ended; no code is shorter than five bits, so it is never more than one.
    symbol: Option<u8>,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The string may end here: what is over since the last symbol is at most seven bits, all ones.
    End,
    /// More must come.
    Inside,
    /// The end-of-string symbol, which a string must not have.
    Refused,
}

/// Replaces what is in `out` by the decoded string: at most 8/5 of what `coded` has.
pub(super) fn decode(coded: &[u8], out: &mut Vec<u8>) -> Result<(), DecodeError> {
    out.clear();
    out.reserve(coded.len() * 8 / 5);
    let mut state = 0u8;
    let mut kind = Kind::End;
    for &octet in coded {
        for half in [octet >> 4, octet & 0xf] {
            let step = STEPS[usize::from(state)][usize::from(half)];
            if let Some(symbol) = step.symbol {
                out.push(symbol);
            }
            if step.kind == Kind::Refused {
                return Err(DecodeError("the end-of-string symbol in a string"));
            }
            state = step.next;
            kind = step.kind;
        }
    }
    if kind == Kind::End { Ok(()) } else { Err(DecodeError("a string's padding is not up to seven ones")) }
}

const fn codes() -> [(u32, u8); 257] {
    let mut codes = [(0, 0); 257];
    let mut code = 0u32;
    let mut length = 1;
    while length <= 30 {
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] == length {
                codes[symbol] = (code, length);
                code += 1;
            }
            symbol += 1;
        }
        code <<= 1;
        length += 1;
    }
    codes
}

/// In [`tree`], a child from here on is a leaf: the symbol plus this.
const LEAF: u16 = 0x100;

/// The children of each node, for a zero and for a one.
const fn tree() -> [[u16; 2]; 256] {
    let mut nodes = [[0u16; 2]; 256];
    let mut used = 1;
    let mut symbol = 0;
    while symbol < CODES.len() {
        let (code, length) = CODES[symbol];
        let mut node = 0;
        let mut left = length - 1;
        while left > 0 {
            let bit = (code >> left & 1) as usize;
            // The root is nobody's child, so 0 means none yet.
            if nodes[node][bit] == 0 {
                nodes[node][bit] = used;
                used += 1;
            }
            node = nodes[node][bit] as usize;
            left -= 1;
        }
        nodes[node][(code & 1) as usize] = LEAF + symbol as u16;
        symbol += 1;
    }
    nodes
}

const fn steps() -> [[Step; 16]; 256] {
    let nodes = tree();

    // Where up to seven ones lead to from the root.
    let mut ends = [false; 256];
    let mut node = 0;
    let mut ones = 0;
    while ones <= 7 {
        ends[node] = true;
        node = nodes[node][1] as usize;
        ones += 1;
    }

    let mut steps = [[Step { next: 0, symbol: None, kind: Kind::Refused }; 16]; 256];
    let mut state = 0;
    while state < 256 {
        let mut half = 0;
        while half < 16 {
            steps[state][half] = step(&nodes, &ends, state, half);
            half += 1;
        }
        state += 1;
    }
    steps
}

const fn step(nodes: &[[u16; 2]; 256], ends: &[bool; 256], state: usize, half: usize) -> Step {
    let mut node = state;
    let mut symbol = None;
    let mut left = 4;
    while left > 0 {
        left -= 1;
        let child = nodes[node][half >> left & 1];
        node = child as usize;
        if child >= LEAF {
            let leaf = (child - LEAF) as usize;
            if leaf == EOS {
                return Step { next: 0, symbol: None, kind: Kind::Refused };
            }
            symbol = Some(leaf as u8);
            node = 0;
        }
    }
    Step { next: node as u8, symbol, kind: if ends[node] { Kind::End } else { Kind::Inside } }
}
