"use strict";
// Without scripts both pictures stand side by side; with them the second lies over the first.
for (const slider of document.querySelectorAll(".pair")) {
  slider.classList.add("slides");
  const stage = slider.querySelector(".stage"), handle = slider.querySelector("input");
  const move = () => stage.style.setProperty("--at", `${handle.value}%`);
  const follow = (event) => {
    const box = stage.getBoundingClientRect();
    handle.value = String(Math.round(Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)) * 100));
    move();
  };
  handle.addEventListener("input", move);
  stage.addEventListener("pointerdown", (event) => { stage.setPointerCapture(event.pointerId); follow(event); });
  stage.addEventListener("pointermove", (event) => { if (event.buttons) follow(event); });
  move();
}
