"use strict";
// Numbers in words.

const number = new Intl.NumberFormat("en");
const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

function bytes(count) {
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) {
    count /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || count >= 100 ? 0 : 1;
  return `${count.toFixed(digits)} ${units[unit]}`;
}

function duration(seconds) {
  const whole = Math.floor(seconds);
  const [minutes, hours, days] = [60, 3600, 86400].map((unit) => Math.floor(whole / unit));
  if (days) return `${days} d ${hours % 24} h`;
  if (hours) return `${hours} h ${minutes % 60} min`;
  if (minutes >= 10) return `${minutes} min`;
  if (minutes) return `${minutes} min ${whole % 60} s`;
  return `${whole} s`;
}

function rate(value) {
  return value >= 100 || Number.isInteger(value) ? number.format(Math.round(value)) : value.toFixed(1);
}

const count = (many, what) => `${number.format(many)} ${what}${many === 1 ? "" : "s"}`;
const clock = (time) => new Date(time).toLocaleTimeString("en-GB");
const shortened = (id) => (id.length > 12 ? `${id.slice(0, 8)}…` : id);
