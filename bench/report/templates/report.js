"use strict";
for (const article of document.querySelectorAll(".case")) {
  const slider = article.querySelector(".slider");
  const pictures = [...article.querySelectorAll(".strip figure:not(.reference) img")];
  const stage = slider.querySelector(".stage");
  const range = slider.querySelector("input");
  const choose = (select, image, index) => {
    for (const picture of pictures) select.add(new Option(picture.dataset.name));
    const show = () => { image.src = pictures[select.selectedIndex].src; image.alt = pictures[select.selectedIndex].alt; };
    select.selectedIndex = index;
    select.addEventListener("change", show);
    show();
  };
  choose(slider.querySelector(".left"), stage.querySelector(".over"), 0);
  choose(slider.querySelector(".right"), stage.querySelector(".under"), Math.min(1, pictures.length - 1));
  const move = () => stage.style.setProperty("--at", range.value + "%");
  range.addEventListener("input", move);
  const point = (event) => {
    const box = stage.getBoundingClientRect();
    range.value = Math.round(100 * (event.clientX - box.left) / box.width);
    move();
  };
  stage.addEventListener("pointerdown", (event) => { stage.setPointerCapture(event.pointerId); point(event); });
  stage.addEventListener("pointermove", (event) => { if (event.buttons) point(event); });
  move();
  slider.hidden = false;
}
