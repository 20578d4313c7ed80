// Unpacks Chromium and the libraries it needs below TMPDIR, and prints where the executable lies. Run by tests/browser/conftest.py.
import chromium from "@sparticuz/chromium";

process.stdout.write(await chromium.executablePath());
