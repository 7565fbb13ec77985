// How numbers are written.

export function integer(value) {
  return Math.round(value).toLocaleString('en');
}

// Three digits, more only before the point.
export function decimal(value) {
  if (value >= 100) return integer(value);
  return value.toFixed(value >= 10 ? 1 : 2);
}

export function bytes(value) {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    ++unit;
  }
  return (unit === 0 ? integer(value) : decimal(value)) + ' ' + units[unit];
}

export function milliseconds(value) {
  return value < 1000 ? decimal(value) + ' ms' : decimal(value / 1000) + ' s';
}

export function age(ms) {
  const seconds = Math.floor(ms / 1000);
  if (seconds < 60) return seconds + ' s';
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return minutes + ' min';
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? hours + ' h ' + (minutes % 60) + ' min' : Math.floor(hours / 24) + ' days';
}

// 2026-11-22 14:03:11, where the reader is.
export function time(ms) {
  return new Date(ms).toLocaleString('sv');
}

export function percent(part, whole) {
  return whole > 0 ? Math.round(100 * part / whole) + ' %' : '–';
}
