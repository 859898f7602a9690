// Readable numbers, times and sizes. An unknown value is a dash. Titles show the exact value.

const UNKNOWN = "–";
const SPACE = "\u00a0";
const exact = new Intl.NumberFormat("en", { maximumFractionDigits: 6 });
const moment = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

/** Formats with at most three digits, or four of a multiple of 1,024: 7, 1.2 k, 34 M; 1012 KiB. */
function scaled(value, units, factor) {
  let place = 0;
  // Half below the factor would round up to it.
  while (Math.abs(value) >= factor - 0.5 && place < units.length - 1) {
    value /= factor;
    place += 1;
  }
  const digits = place === 0 || Math.abs(value) >= 99.5 ? 0 : 1;
  const text = value.toFixed(digits).replace(/\.0$/, "");
  return units[place] ? text + SPACE + units[place] : text;
}

export const count = (value) => (isNumber(value) ? scaled(value, ["", "k", "M", "G", "T"], 1000) : UNKNOWN);
export const bytes = (value) => (isNumber(value) ? scaled(value, ["B", "KiB", "MiB", "GiB", "TiB"], 1024) : UNKNOWN);
export const exactly = (value, unit = "") => (isNumber(value) ? exact.format(value) + (unit && SPACE + unit) : "not known");

/** Formats a fraction as a percentage. Only 1 becomes 100 %. */
export function percent(share) {
  if (!isNumber(share)) return UNKNOWN;
  const value = share * 100;
  const shown = value >= 99.95 && value < 100 ? 99.9 : value;
  return shown.toFixed(shown > 0 && shown < 100 ? 1 : 0).replace(/\.0$/, "") + SPACE + "%";
}

/** Formats a duration in its largest unit, or in two units. */
export function seconds(value) {
  if (!isNumber(value)) return UNKNOWN;
  if (value === 0) return `0${SPACE}s`;
  if (value < 0.001) return `<${SPACE}1${SPACE}ms`;
  if (value < 0.9995) return `${Math.round(value * 1000)}${SPACE}ms`;
  if (value < 9.95) return `${value.toFixed(1).replace(/\.0$/, "")}${SPACE}s`;
  if (value < 59.5) return `${Math.round(value)}${SPACE}s`;
  const minutes = Math.round(value / 60);
  if (minutes < 60) return `${minutes}${SPACE}min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return `${hours}${SPACE}h` + (minutes % 60 ? ` ${minutes % 60}${SPACE}min` : "");
  const days = Math.floor(hours / 24);
  return `${days}${SPACE}d` + (days < 7 && hours % 24 ? ` ${hours % 24}${SPACE}h` : "");
}

/** Formats the age of an event. */
export function ago(value) {
  if (!isNumber(value)) return UNKNOWN;
  return value < 1 ? "just now" : `${seconds(value < 10 ? Math.floor(value) : value)} ago`;
}

/** Formats Unix seconds as local date and time. */
export const date = (at) => (isNumber(at) ? moment.format(at * 1000) : "not known");
export const time = (at) => clock.format(at * 1000);

/** Parses an http or https URL; returns `null` for anything else. */
export function safeUrl(text) {
  try {
    const url = new URL(text);
    return url.protocol === "https:" || url.protocol === "http:" ? url : null;
  } catch {
    return null;
  }
}

/**
 * Adds line breaks and indents to JSON, and keeps every number, string and key as it is. Parsing and printing would
 * change them: 1.50 to 1.5, a large number to its nearest double.
 */
export function indented(text) {
  let depth = 0;
  const line = () => "\n" + "  ".repeat(Math.min(depth, 100));
  const tokens = text.match(/"[^"\\]*(?:\\.[^"\\]*)*"|[{}[\],:]|[^\s{}[\],:"]+|"/gs) ?? [];
  let out = "";
  for (let n = 0; n < tokens.length; n += 1) {
    const token = tokens[n];
    if (token === "{" || token === "[") {
      if (tokens[n + 1] === (token === "{" ? "}" : "]")) {
        out += token + tokens[(n += 1)];
      } else {
        depth += 1;
        out += token + line();
      }
    } else if (token === "}" || token === "]") {
      depth = Math.max(0, depth - 1);
      out += line() + token;
    } else if (token === ",") {
      out += token + line();
    } else {
      out += token === ":" ? ": " : token;
    }
  }
  return out;
}
