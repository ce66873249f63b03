"""Names of files that lie beside recordings and are none; `source.ignore` is these by default.

Not those that may hold sound, such as `.ts`, `.dat`, `.mod` and `.bin`.
"""

_UNFINISHED = """
    part partial filepart crdownload download opdownload !ut !qb aria2 ytdl torrent tmp temp swp swo
    bak old orig rej lock lck"""
_TEXTS = """
    m3u m3u8 pls xspf cue nfo sfv md5 sha1 sha256 sha512 par2 asc sig
    json jsonl ndjson csv tsv parquet txt text md rst xml yaml yml toml ini cfg conf log tex bib
    srt vtt ass ssa sbv sub idx sup ttml dfxp smi lab lrc textgrid eaf trs rttm ctm stm
    py sh bat cmd ps1 ipynb html htm mhtml css js url webloc lnk desktop ics vcf eml msg mbox"""
_DOCUMENTS = """
    pdf ps rtf epub mobi pages numbers key one pub vsd vsdx doc docx docm dot dotx dotm
    xls xlsx xlsm xlsb xltx ppt pptx pptm pps ppsx potx odt ods odp odg odf ott
    jpg jpeg jfif png gif bmp tif tiff webp svg heic heif avif ico psd ai eps xcf
    raf cr2 cr3 nef arw dng"""
_ARCHIVES = """
    zip rar 7z gz tgz bz2 tbz2 xz txz zst tzst lz4 lzma z cab iso dmg img pkg deb rpm apk jar
    exe msi dll so dylib ttf otf woff woff2 db db-wal db-shm sqlite sqlite3 mdb accdb"""
_AUDIO_EDITORS = "aup aup3 sesx als asd rpp reapeaks pek pkf cfa sfk ptx band logicx"

NO_AUDIO_PATTERNS = (
    # Of systems, of disks, and of programs that copy, edit or compute.
    ".*", "_SUCCESS", "_temporary", "__MACOSX", "*_$folder$", "Thumbs.db", "ehthumbs*.db",
    "desktop.ini", "Icon\r", "*@SynoEAStream", "*@SynoResource", "~$*", "*~", "#*#",
    "$RECYCLE.BIN/", "RECYCLER/", "System Volume Information/", "lost+found/", "@eaDir/",
    "@Recycle/", "#recycle/",
    "README", "LICENSE", "LICENCE", "COPYING", "NOTICE", "CHANGES", "Makefile", "Dockerfile",
    *(
        f"*.{suffix}"
        for kind in (_UNFINISHED, _TEXTS, _DOCUMENTS, _ARCHIVES, _AUDIO_EDITORS)
        for suffix in kind.split()
    ),
)  # fmt: skip
"""Patterns of file names; a slash at the end makes one of folders."""
