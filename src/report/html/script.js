"use strict";
// Sort a table by a click on a heading (again for the other direction), filter its rows by text,
// show what a point of a chart stands for, and lead from the point to its row.
document.querySelectorAll("table.sortable").forEach((table) => {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.tabIndex = 0;
    const sort = () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((h) => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => {
        const cell = row.cells[column];
        return "v" in cell.dataset ? parseFloat(cell.dataset.v) : cell.textContent;
      };
      const order = (a, b) => {
        const [x, y] = [value(a), value(b)];
        // Rows without a number come last in either direction.
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        const by = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
        return down ? -by : by;
      };
      [...body.rows].sort(order).forEach((row) => body.appendChild(row));
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
  });
  const filter = document.querySelector(`input.filter[data-for="${table.id}"]`);
  if (filter) {
    filter.addEventListener("input", () => {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const row of body.rows) {
        const text = row.textContent.toLowerCase();
        row.hidden = !words.every((word) => text.includes(word));
      }
    });
  }
});
const tip = document.getElementById("tip");
document.querySelectorAll("[data-tip]").forEach((point) => {
  point.addEventListener("mousemove", (event) => {
    tip.textContent = point.dataset.tip;
    tip.style.display = "block";
    const right = event.clientX + 14 + tip.offsetWidth > window.innerWidth;
    tip.style.left = (right ? event.clientX - 14 - tip.offsetWidth : event.clientX + 14) + "px";
    tip.style.top = Math.min(event.clientY + 14, window.innerHeight - tip.offsetHeight - 4) + "px";
  });
  point.addEventListener("mouseleave", () => { tip.style.display = "none"; });
});
document.querySelectorAll("[data-row]").forEach((point) => {
  point.addEventListener("click", () => {
    const row = document.getElementById(point.dataset.row);
    if (!row) return;
    document.querySelectorAll(".on").forEach((other) => other.classList.remove("on"));
    row.hidden = false;
    [row, point].forEach((item) => item.classList.add("on"));
    row.scrollIntoView({ block: "center" });
  });
});
