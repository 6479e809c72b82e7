//! The charts that a chunkserver has. Spec 70, 6.1.

use charts::{Join, Kind, Layers, Series, Stacked};

/// In the order of the specification.
const SERIES: [Series; SERIES_COUNT] = [
    series("ucpu", b"UCPU", Join::Add),
    series("scpu", b"SCPU", Join::Add),
    series("masterin", b"MSTI", Join::Add),
    series("masterout", b"MSTO", Join::Add),
    series("csrepin", b"REPI", Join::Add),
    series("csrepout", b"REPO", Join::Add),
    series("csservin", b"SRVI", Join::Add),
    series("csservout", b"SRVO", Join::Add),
    series("hdrbytesr", b"HRBR", Join::Add),
    series("hdrbytesw", b"HRBW", Join::Add),
    series("hdrllopr", b"HROR", Join::Add),
    series("hdrllopw", b"HROW", Join::Add),
    series("databytesr", b"DTBR", Join::Add),
    series("databytesw", b"DTBW", Join::Add),
    series("datallopr", b"DTOR", Join::Add),
    series("datallopw", b"DTOW", Join::Add),
    series("hlopr", b"HLOR", Join::Add),
    series("hlopw", b"HLOW", Join::Add),
    series("rtime", b"TIMR", Join::Add),
    series("wtime", b"TIMW", Join::Add),
    series("repl", b"REPC", Join::Add),
    series("create", b"CREC", Join::Add),
    series("delete", b"DELC", Join::Add),
    series("version", b"VERC", Join::Add),
    series("duplicate", b"DUPC", Join::Add),
    series("truncate", b"TRUC", Join::Add),
    series("duptrunc", b"DTRC", Join::Add),
    series("test", b"TSTC", Join::Add),
    series("load", b"LOAD", Join::Max),
    series("memoryrss", b"MEMR", Join::Max),
    series("memoryvirt", b"MEMV", Join::Max),
    series("movels", b"MOVL", Join::Add),
    series("movehs", b"MOVH", Join::Add),
    series("change", b"CHGC", Join::Add),
];
pub(crate) const SERIES_COUNT: usize = 34;

/// One number for each series.
pub(crate) type Sample = [u64; SERIES_COUNT];

pub(crate) const KIND: Kind = Kind {
    series: &SERIES,
    stacked: &[
        sum(b"TCPU", &[0, 1]),
        sum(b"BWIN", &[4, 6]),
        sum(b"BWOU", &[5, 7]),
        sum(b"HDBR", &[8, 12]),
        sum(b"HDBW", &[9, 13]),
        sum(b"HDOR", &[10, 14]),
        sum(b"HDOW", &[11, 15]),
        Stacked { id: b"TMEM", layers: Layers::Part { part: 29, whole: 30 } },
        sum(b"MOVE", &[31, 32]),
    ],
};

const fn series(name: &'static str, id: &'static [u8; 4], join: Join) -> Series {
    Series { name, id, join }
}

const fn sum(id: &'static [u8; 4], series: &'static [usize]) -> Stacked {
    Stacked { id, layers: Layers::Sum(series) }
}
